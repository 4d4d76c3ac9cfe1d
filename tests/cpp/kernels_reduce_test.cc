// SPDX-License-Identifier: MIT
// Every operation on every dtype at every CPU level against the reference, bit for bit.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "check.h"
#include "kernels/cpu_kernels.h"
#include "kernels/reduce.h"
#include "kernels_data.h"
#include "kernels_reference.h"

using namespace pycomm;

namespace {

constexpr size_t kCounts[] = {0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 1000, 4099};
constexpr int kSourceCounts[] = {1, 2, 3, 4, 5, 8};
constexpr size_t kLargest = 4099;
constexpr char kGuard = 0x5a;

std::vector<CpuLevel> levels() {
  std::vector<CpuLevel> all;
  for (int i = 0; i <= static_cast<int>(hardware_cpu_level()); ++i) {
    all.push_back(static_cast<CpuLevel>(i));
  }
  return all;
}

std::vector<int> divisors(ReduceOp op) {
  if (op == ReduceOp::avg) return {1, 3, 4, 300};
  return {1};
}

// All counts, all levels, out of place and with the target on each of two sources, at odd
// addresses.
void check_case(const reference::Case& c, const std::vector<std::vector<char>>& inputs) {
  const size_t size = size_of(c.dtype);
  std::vector<char> expected(kLargest * size);
  for (size_t i = 0; i < kLargest; ++i) reference::element(c, i, &expected[i * size]);
  const int k = static_cast<int>(inputs.size());
  for (CpuLevel level : levels()) {
    for (size_t count : kCounts) {
      for (int aliased : {-1, 0, k - 1}) {
        // One guard byte before and after; the shift makes pointers unaligned in different ways.
        const size_t bytes = count * size, shift = 1 + (count + aliased + 1) % 3;
        std::vector<std::vector<char>> copies(k, std::vector<char>(shift + bytes + 1, kGuard));
        std::vector<const void*> sources(k);
        for (int s = 0; s < k; ++s) {
          std::copy_n(inputs[s].begin(), bytes, copies[s].begin() + shift);
          sources[s] = copies[s].data() + shift;
        }
        std::vector<char> separate(shift + bytes + 1, kGuard);
        std::vector<char>& target = aliased < 0 ? separate : copies[aliased];
        // More targets: one apart, and the source that is not the target already, where there is.
        std::vector<char> apart(shift + bytes + 1, kGuard);
        const int second = count % 2 && k > 1 ? (aliased == 0 ? k - 1 : 0) : -1;
        std::vector<void*> more;
        if (count % 3) more.push_back(apart.data() + shift);
        if (second >= 0) more.push_back(copies[second].data() + shift);
        reduce_at(level, {c.op, c.dtype, target.data() + shift, sources.data(), k, count, c.divisor,
                          more.data(), static_cast<int>(more.size())});
        for (const void* one : more) {
          CHECK(
              std::equal(expected.begin(), expected.begin() + bytes, static_cast<const char*>(one)),
              name_of(c.op), " of ", name_of(c.dtype), " k=", k, " count=", count, " at ",
              name_of(level), ": a copy is wrong");
        }
        CHECK(apart[shift - 1] == kGuard && apart[shift + bytes] == kGuard, "out of bounds");
        const auto at =
            std::mismatch(expected.begin(), expected.begin() + bytes, target.begin() + shift);
        CHECK(at.first == expected.begin() + bytes, name_of(c.op), " of ", name_of(c.dtype),
              " k=", k, " count=", count, " divisor=", c.divisor, " at ", name_of(level),
              " aliased=", aliased, ": wrong from byte ", at.first - expected.begin());
        CHECK(target[shift - 1] == kGuard && target[shift + bytes] == kGuard, "out of bounds");
        for (int s = 0; s < k; ++s) {
          CHECK(s == aliased || s == second ||
                    std::equal(inputs[s].begin(), inputs[s].begin() + bytes,
                               copies[s].begin() + shift),
                "source ", s, " was written");
        }
      }
    }
  }
}

void check_op(ReduceOp op) {
  std::mt19937_64 random(kernels_data::seed() + static_cast<int>(op));
  for (int d = 0; d < kDTypeCount; ++d) {
    const auto dtype = static_cast<DType>(d);
    if (!supports(op, dtype)) continue;
    for (int k : kSourceCounts) {
      std::vector<std::vector<char>> inputs(k, std::vector<char>(kLargest * size_of(dtype)));
      for (auto& input : inputs) kernels_data::fill(random, dtype, input);
      for (int divisor : divisors(op)) {
        reference::Case c{op, dtype, divisor, {}};
        for (const auto& input : inputs) c.sources.push_back(input.data());
        check_case(c, inputs);
      }
    }
  }
}

template <class F>
void check_bound(DType dtype) {
  std::mt19937_64 random(kernels_data::seed());
  std::normal_distribution<F> normal;
  constexpr int kSources = 8;
  std::vector<std::vector<F>> inputs(kSources, std::vector<F>(kLargest));
  for (auto& input : inputs)
    std::generate(input.begin(), input.end(), [&] { return normal(random); });
  std::vector<const void*> sources;
  for (const auto& input : inputs) sources.push_back(input.data());
  std::vector<F> out(kLargest);
  reduce({ReduceOp::avg, dtype, out.data(), sources.data(), kSources, kLargest, 7});
  for (size_t i = 0; i < kLargest; ++i) {
    long double exact = 0, magnitude = 0;
    for (const auto& input : inputs) exact += input[i], magnitude += std::fabs(input[i]);
    // k - 1 additions and a division, half an ulp each.
    const long double bound = kSources * std::numeric_limits<F>::epsilon() / 2 * magnitude / 7;
    CHECK(std::fabs(out[i] - exact / 7) <= bound, "element ", i);
  }
}

}  // namespace

TEST("sum is right at every level") { check_op(ReduceOp::sum); }
TEST("avg is right at every level") { check_op(ReduceOp::avg); }
TEST("product is right at every level") { check_op(ReduceOp::product); }
TEST("min is right at every level") { check_op(ReduceOp::min); }
TEST("max is right at every level") { check_op(ReduceOp::max); }
TEST("band is right at every level") { check_op(ReduceOp::band); }
TEST("bor is right at every level") { check_op(ReduceOp::bor); }
TEST("bxor is right at every level") { check_op(ReduceOp::bxor); }

TEST("a float32 average of eight stays within k/2 ulp of the exact one") {
  check_bound<float>(DType::float32);
}
TEST("a float64 average of eight stays within k/2 ulp of the exact one") {
  check_bound<double>(DType::float64);
}

TEST("a 16-bit sum is rounded once, not after every source") {
  // 256 + 1 + 1 is 258 in float32; in bfloat16 steps 256 + 1 rounds back to 256 twice.
  const uint16_t big = 0x4380, one = 0x3f80;
  const void* sources[] = {&big, &one, &one};
  for (CpuLevel level : levels()) {
    uint16_t out = 0;
    reduce_at(level, {ReduceOp::sum, DType::bfloat16, &out, sources, 3, 1, 1});
    CHECK(out == 0x4381, name_of(level), " gave ", out);
  }
}

TEST("scale multiplies, in place or on the way, alike at every level") {
  std::mt19937_64 random(kernels_data::seed());
  for (int d = 0; d < kDTypeCount; ++d) {
    const auto dtype = static_cast<DType>(d);
    if (!is_floating(dtype) && !is_complex(dtype)) continue;
    std::vector<char> input(kLargest * size_of(dtype));
    kernels_data::fill(random, dtype, input);
    std::vector<char> expected = input;
    cpu_kernels_at(CpuLevel::scalar).scale(dtype, input.data(), expected.data(), kLargest, 1.0 / 3);
    for (CpuLevel level : levels()) {
      std::vector<char> out = input;
      cpu_kernels_at(level).scale(dtype, out.data(), out.data(), kLargest, 1.0 / 3);
      CHECK(out == expected, name_of(dtype), " in place at ", name_of(level));
      std::fill(out.begin(), out.end(), '\7');
      cpu_kernels_at(level).scale(dtype, input.data(), out.data(), kLargest, 1.0 / 3);
      CHECK(out == expected, name_of(dtype), " at ", name_of(level));
    }
    if (dtype != DType::float32) continue;
    for (size_t i = 0; i < kLargest; ++i) {
      const float x = reference::from_bytes<float>(&input[4 * i]) * static_cast<float>(1.0 / 3);
      const float y = reference::from_bytes<float>(&expected[4 * i]);
      CHECK(std::isnan(x) ? std::isnan(y) : std::memcmp(&x, &y, 4) == 0, "element ", i);
    }
  }
}

TEST("PYCOMM_CPU chooses a level, and refuses what it cannot give") {
  CHECK(chosen_cpu_level("", CpuLevel::avx2) == CpuLevel::avx2);
  CHECK(chosen_cpu_level("scalar", CpuLevel::avx512) == CpuLevel::scalar);
  CHECK(chosen_cpu_level("avx2", CpuLevel::avx512) == CpuLevel::avx2);
  for (const char* wanted : {"avx512", "sse", "AVX2"}) {
    bool refused = false;
    try {
      chosen_cpu_level(wanted, CpuLevel::avx2);
    } catch (const UsageError& error) {
      refused = std::string(error.what()).find(wanted) != std::string::npos;
    }
    CHECK(refused, wanted);
  }
}

TEST("a task that has no meaning is refused") {
  float x = 1;
  const void* sources[] = {&x};
  for (const ReduceTask& task : {ReduceTask{ReduceOp::band, DType::float32, &x, sources, 1, 1, 1},
                                 ReduceTask{ReduceOp::sum, DType::float32, &x, sources, 0, 1, 1},
                                 ReduceTask{ReduceOp::sum, DType::float32, &x, sources, 1, 1, 0},
                                 ReduceTask{ReduceOp::max, DType::float32, &x, sources, 1, 1, 2}}) {
    bool refused = false;
    try {
      reduce(task);
    } catch (const std::logic_error&) {
      refused = true;
    }
    CHECK(refused, name_of(task.op));
  }
}

TEST("nothing beside a range is touched, also where it ends at a page that cannot be") {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto map = [&] {
    void* const at =
        ::mmap(nullptr, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    auto* const middle = static_cast<char*>(at) + page;
    CHECK(::mprotect(at, page, PROT_NONE) == 0 && ::mprotect(middle + page, page, PROT_NONE) == 0);
    return middle;
  };
  char* const memory[3] = {map(), map(), map()};
  for (const DType dtype : {DType::uint8, DType::float16, DType::float32, DType::complex128}) {
    for (size_t count = 1; count * size_of(dtype) <= 160; ++count) {
      for (const bool at_end : {false, true}) {
        const size_t from = at_end ? page - count * size_of(dtype) : 0;
        const void* sources[] = {memory[0] + from, memory[1] + from};
        void* copies[] = {memory[1] + from};
        ReduceTask task{ReduceOp::sum, dtype, memory[2] + from, sources, 2, count, 1};
        task.copies = copies;
        task.copy_count = 1;
        for (const CpuLevel level : levels()) reduce_at(level, task);  // or this process ends
      }
    }
  }
  for (char* const middle : memory) ::munmap(middle - page, 3 * page);
}
