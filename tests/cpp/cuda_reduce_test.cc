// SPDX-License-Identifier: MIT
// The GPU's kernel body, run by the CPU, gives the bits of the CPU kernels: all its dtypes and
// operations, numbers of sources, counts, misalignments and grid sizes.
#include "kernels/cuda_reduce.h"

#include <algorithm>

#include "check.h"
#include "kernels_data.h"

using namespace pycomm;

namespace {

constexpr size_t kCounts[] = {0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 1000, 4099};
constexpr size_t kLargest = 4099;
constexpr size_t kSlack = 16;
constexpr char kGuard = 0x5a;

struct alignas(16) Sixteen {
  char bytes[16];
};

// Memory that starts on a 16-byte boundary, as device allocations do.
class Aligned {
 public:
  explicit Aligned(size_t bytes) : blocks_(bytes / 16 + 2) { std::memset(data(), kGuard, size()); }
  char* data() { return blocks_.data()->bytes; }
  size_t size() const { return blocks_.size() * 16; }

 private:
  std::vector<Sixteen> blocks_;
};

// `shifts[i]` elements of misalignment for source i, the last one for the target.
void check_one(ReduceTask task, const std::vector<std::vector<char>>& inputs,
               const std::vector<size_t>& shifts, bool aliased, int threads) {
  const size_t size = size_of(task.dtype), bytes = task.count * size;
  std::vector<Aligned> memory(inputs.size() + 1, Aligned(bytes + kSlack * size));
  std::vector<const void*> sources;
  for (size_t s = 0; s < inputs.size(); ++s) {
    char* at = memory[s].data() + shifts[s] * size;
    std::copy_n(inputs[s].begin(), bytes, at);
    sources.push_back(at);
  }
  std::vector<char> expected(bytes);
  task.sources = sources.data();
  task.target = expected.data();
  reduce(task);
  const size_t which = aliased ? inputs.size() - 1 : inputs.size();
  char* target = memory[which].data() + shifts[which] * size;
  task.target = target;
  CHECK(cuda_reduce_on_host(task, threads) == 0);
  CHECK(std::equal(expected.begin(), expected.end(), target), name_of(task.op), " of ",
        name_of(task.dtype), " k=", inputs.size(), " count=", task.count, " threads=", threads,
        " divisor=", task.divisor, " shift=", shifts[0]);
  const char* end = memory[which].data() + memory[which].size();
  CHECK(std::all_of(target + bytes, const_cast<char*>(end), [](char c) { return c == kGuard; }),
        "written past the end");
}

void check_pair(ReduceOp op, DType dtype, std::mt19937_64& random) {
  for (int k = 1; k <= kCudaSourcesMax; ++k) {
    std::vector<std::vector<char>> inputs(k, std::vector<char>(kLargest * size_of(dtype)));
    for (auto& input : inputs) kernels_data::fill(random, dtype, input);
    for (int divisor : op == ReduceOp::avg ? std::vector<int>{1, 3, 4, 300} : std::vector<int>{1}) {
      for (size_t count : kCounts) {
        const ReduceTask task{op, dtype, nullptr, nullptr, k, count, divisor};
        std::vector<size_t> shifts(k + 1, 0);
        check_one(task, inputs, shifts, false, 1);
        check_one(task, inputs, shifts, true, 7);
        std::fill(shifts.begin(), shifts.end(), 1);  // all alike: vectors after a scalar head
        check_one(task, inputs, shifts, false, 64);
        shifts[0] = 0;  // not alike: no vectors at all
        check_one(task, inputs, shifts, true, 5);
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
      if (!cuda_reduce_supports(op, dtype)) continue;
      CHECK(supports(op, dtype), name_of(op), " of ", name_of(dtype));
      check_pair(op, dtype, random);
      ++pairs;
    }
  }
  CHECK(pairs == 7 * 5, pairs, " pairs of dtype and operation");
}

TEST("what the device cannot do is refused with cudaErrorInvalidValue") {
  float x = 1;
  const std::vector<const void*> sources(9, &x);
  CHECK(cuda_reduce_on_host({ReduceOp::sum, DType::float32, &x, sources.data(), 9, 1, 1}, 1) == 1);
  CHECK(cuda_reduce_on_host({ReduceOp::bxor, DType::int32, &x, sources.data(), 2, 1, 1}, 1) == 1);
  CHECK(!cuda_reduce_supports(ReduceOp::sum, DType::complex64));
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
