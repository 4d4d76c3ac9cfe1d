// SPDX-License-Identifier: MIT
// How fast reduce() is, in GB/s of target bytes, beside memcpy and a plain `a += b` loop.
//
//   kernels [dtype] [repetitions]
//
// Columns: dtype, bytes of the target, sources k, level, GB/s of target bytes (count * size / time,
// so numbers of one k compare across dtypes). k = 2 adds into source 0, as a ring step does; larger
// k writes to its own target. Each figure is the median over many rounds, and a round times every
// contender once, so a slow moment of the machine hits all alike. One thread.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "timing.h"

using namespace pycomm;

namespace {

struct Contender {
  std::string name;
  std::function<void()> run;
  std::vector<double> seconds;
};

// The yardstick: what the compiler makes of the obvious loop (build this file with -O3
// -march=native).
template <class T>
__attribute__((noinline)) void plain_loop(T* __restrict a, const T* __restrict b, size_t count) {
  for (size_t i = 0; i < count; ++i) a[i] += b[i];
}

class Buffers {
 public:
  Buffers(int count, size_t bytes) {
    for (int i = 0; i < count; ++i) {
      all_.push_back(std::aligned_alloc(4096, bytes));
      std::memset(all_.back(), 0, bytes);  // zeros stay zeros: no overflow, no subnormals
    }
  }
  ~Buffers() {
    for (void* buffer : all_) std::free(buffer);
  }
  void* operator[](size_t i) const { return all_[i]; }

 private:
  std::vector<void*> all_;
};

void add_yardsticks(std::vector<Contender>& contenders, DType dtype, const Buffers& buffers,
                    size_t bytes) {
  void *a = buffers[0], *b = buffers[1];
  contenders.push_back({"memcpy", [=] { std::memcpy(a, b, bytes); }, {}});
  const auto loop = [&](auto zero) {
    using T = decltype(zero);
    contenders.push_back(
        {"loop",
         [=] { plain_loop(static_cast<T*>(a), static_cast<const T*>(b), bytes / sizeof(T)); },
         {}});
  };
  switch (dtype) {
    case DType::float64:
      return loop(double{});
    case DType::int32:
      return loop(int32_t{});
    case DType::int64:
      return loop(int64_t{});
    default:
      return loop(float{});  // for 16-bit floats: the float32 loop over as many bytes
  }
}

void measure(DType dtype, size_t bytes, int k, int rounds) {
  const Buffers buffers(k + 1, bytes);
  std::vector<const void*> sources;
  for (int s = 0; s < k; ++s) sources.push_back(buffers[s]);
  std::vector<Contender> contenders;
  if (k == 2) add_yardsticks(contenders, dtype, buffers, bytes);
  for (int i = 0; i <= static_cast<int>(hardware_cpu_level()); ++i) {
    const auto level = static_cast<CpuLevel>(i);
    const ReduceTask task{
        ReduceOp::sum,          dtype, k == 2 ? buffers[0] : buffers[k], sources.data(), k,
        bytes / size_of(dtype), 1};
    contenders.push_back({std::string(name_of(level)), [=] { reduce_at(level, task); }, {}});
  }
  const int calls = static_cast<int>(std::max<size_t>(1, (4u << 20) / bytes / k));
  for (int round = 0; round < rounds; ++round) {
    for (Contender& c : contenders) c.seconds.push_back(once(c.run, calls));
  }
  std::printf("%-9s %9zu  k=%d ", std::string(name_of(dtype)).c_str(), bytes, k);
  for (const Contender& c : contenders) {
    std::printf("  %s %6.2f", c.name.c_str(), bytes / median(c.seconds) * 1e-9);
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 101;
  for (DType dtype : {DType::float32, DType::float64, DType::bfloat16, DType::float16, DType::int32,
                      DType::int64}) {
    if (!only.empty() && name_of(dtype) != only) continue;
    for (int k : {2, 3, 4, 8}) {
      for (size_t bytes : {size_t{64} << 10, size_t{1} << 20, size_t{64} << 20}) {
        measure(dtype, bytes, k, bytes > (8u << 20) ? rounds / 4 + 1 : rounds);
      }
    }
  }
}
