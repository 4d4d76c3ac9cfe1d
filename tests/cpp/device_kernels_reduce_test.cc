// SPDX-License-Identifier: MIT
// The GPU's reduction, run by the CPU, gives the bits of the CPU kernels: all dtypes and
// operations, numbers of sources and targets, counts, misalignments and grid sizes.
#include <algorithm>
#include <random>
#include <string>

#include "check.h"
#include "device_memory.h"
#include "kernels/host_env.h"
#include "kernels/reduce_launch.h"
#include "kernels_data.h"

using namespace pycomm;
using device_memory::Aligned;
using device_memory::kernels;

namespace {

constexpr size_t kCounts[] = {0, 1, 3, 7, 8, 15, 16, 17, 33, 63, 64, 65, 4099};
constexpr size_t kLargest = 4099;
constexpr size_t kSlack = 16;

// A grid of any shape, its blocks run from the last to the first.
struct GridLaunch {
  size_t blocks;
  int threads;
  template <class Body>
  int operator()(const Body& body, size_t, void*) const {
    for (size_t block = blocks; block-- > 0;) body(HostEnv(block, blocks, threads));
    return kLaunched;
  }
};

struct Case {
  std::vector<size_t> shifts;  // elements of misalignment of each source, then of each target
  int targets = 1;
  int aliased = 0;  // so many targets are sources
  GridLaunch grid{1, 1};
};

void check_one(ReduceTask task, const std::vector<std::vector<char>>& inputs, const Case& one) {
  const size_t size = size_of(task.dtype), bytes = task.count * size, k = inputs.size();
  std::vector<Aligned> memory(k + static_cast<size_t>(one.targets), Aligned(bytes + kSlack * size));
  const auto at = [&](size_t i) { return memory[i].data() + one.shifts[i] * size; };
  std::vector<const void*> sources;
  for (size_t s = 0; s < k; ++s) {
    std::copy_n(inputs[s].begin(), bytes, at(s));
    sources.push_back(at(s));
  }
  std::vector<char> expected(bytes);
  task.sources = sources.data();
  task.target = expected.data();
  reduce(task);
  std::vector<size_t> places;
  std::vector<void*> targets;
  for (int t = 0; t < one.targets; ++t) {
    const auto source = static_cast<size_t>(t);
    places.push_back(t < one.aliased && source < k ? k - 1 - source : k + static_cast<size_t>(t));
    targets.push_back(at(places.back()));
  }
  task.target = targets[0];
  task.copies = targets.data() + 1;
  task.copy_count = one.targets - 1;
  CHECK(launch_reduce(task, one.grid, nullptr) == kLaunched);
  for (size_t place : places) {
    CHECK(std::equal(expected.begin(), expected.end(), at(place)), name_of(task.op), " of ",
          name_of(task.dtype), " k=", k, " count=", task.count, " divisor=", task.divisor,
          " targets=", one.targets, " blocks=", one.grid.blocks, " shift=", one.shifts[0]);
    CHECK(memory[place].is_untouched(at(place) + bytes), "written past the end");
  }
}

void check_pair(ReduceOp op, DType dtype, std::mt19937_64& random) {
  for (int k : {1, 2, 3, 5, 8, 9, 17}) {
    std::vector<std::vector<char>> inputs(k, std::vector<char>(kLargest * size_of(dtype)));
    for (auto& input : inputs) kernels_data::fill(random, dtype, input);
    for (int divisor : op == ReduceOp::avg ? std::vector<int>{1, 3, 4, 300} : std::vector<int>{1}) {
      for (size_t count : kCounts) {
        const ReduceTask task{op, dtype, nullptr, nullptr, k, count, divisor};
        const int targets = 1 + static_cast<int>(random() % 10);
        std::vector<size_t> shifts(static_cast<size_t>(k + targets), 0);
        check_one(task, inputs, {shifts, 1, 0, {1, 1}});
        check_one(task, inputs, {shifts, targets, 2, {1, 7}});
        std::fill(shifts.begin(), shifts.end(), 1);  // all alike: vectors after a scalar head
        check_one(task, inputs, {shifts, targets, targets, {4, 16}});
        shifts[0] = 0;  // not alike: no vectors at all
        check_one(task, inputs, {shifts, 1, 1, {5, 1}});
        shifts[0] = 1;
        shifts.back() = 3;
        check_one(task, inputs, {shifts, targets, 0, {2, 3}});
      }
    }
  }
}

}  // namespace

TEST("the device body gives the same bits as the CPU kernels") {
  std::mt19937_64 random(kernels_data::seed());
  int pairs = 0;
  for (int o = 0; o < kReduceOpCount; ++o) {
    for (int d = 0; d < kDTypeCount; ++d) {
      const auto op = static_cast<ReduceOp>(o);
      const auto dtype = static_cast<DType>(d);
      if (op == ReduceOp::premul_sum || !supports(op, dtype)) continue;
      check_pair(op, dtype, random);
      ++pairs;
    }
  }
  // Eight integers with eight operations, booleans without avg, nine floats with five, three
  // complex types with three.
  CHECK(pairs == 8 * 8 + 7 + 9 * 5 + 3 * 3, pairs, " pairs of dtype and operation");
}

TEST("sixty-four sources are summed in one pass, with one rounding") {
  std::mt19937_64 random(kernels_data::seed());
  std::vector<std::vector<char>> inputs(kDeviceSourcesMax, std::vector<char>(2 * 513));
  for (auto& input : inputs) kernels_data::fill(random, DType::bfloat16, input);
  const ReduceTask task{ReduceOp::avg, DType::bfloat16,  nullptr, nullptr, kDeviceSourcesMax,
                        513,           kDeviceSourcesMax};
  check_one(task, inputs, {std::vector<size_t>(kDeviceSourcesMax + 3, 0), 3, 0, {3, 8}});
}

TEST("what the device cannot do is refused with cudaErrorInvalidValue") {
  float x = 1;
  const std::vector<const void*> sources(kDeviceSourcesMax + 1, &x);
  const auto refused = [&](ReduceOp op, DType dtype, int source_count, int divisor) {
    const ReduceTask task{op, dtype, &x, sources.data(), source_count, 1, divisor};
    return kernels().reduce(task, nullptr) == kInvalidValue;
  };
  CHECK(refused(ReduceOp::sum, DType::float32, kDeviceSourcesMax + 1, 1));
  CHECK(refused(ReduceOp::sum, DType::float32, 0, 1));
  CHECK(refused(ReduceOp::sum, DType::float32, 1, 0));
  CHECK(refused(ReduceOp::max, DType::float32, 2, 2));
  CHECK(refused(ReduceOp::bxor, DType::float32, 2, 1));
  CHECK(refused(ReduceOp::premul_sum, DType::float32, 2, 1));
  CHECK(refused(ReduceOp::min, DType::complex64, 2, 1));
  CHECK(!refused(ReduceOp::sum, DType::float32, 2, 1));
}

#ifdef PYCOMM_WITH_CUDA
TEST("asking for devices answers cleanly, with or without a driver") {
  int error = -1;
  const int count = cuda_device_count(&error);
  CHECK((count > 0) == (error == 0), count, " devices, error ", error);
  CHECK(std::string(cuda_error_text(35)).find("driver") != std::string::npos, cuda_error_text(35));
  std::printf("%d devices, error %d: %s\n", count, error, cuda_error_text(error));
}
#endif
