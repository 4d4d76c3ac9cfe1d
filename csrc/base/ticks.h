// SPDX-License-Identifier: MIT
// The processor's time stamp counter: several times cheaper to read than a clock, which counts
// where an operation takes less than a microsecond. Only differences mean anything; TickScale turns
// them into time. On machines whose counter follows the clock rate the times are off, so nothing
// but reports may depend on them: deadlines use Deadline. Any thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace pycomm {

inline uint64_t ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t count;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// Ticks since its own making, in microseconds. Learns the counter's rate from the time that has
// passed since then.
class TickScale {
 public:
  double us_per_tick() const {
    const auto now = std::chrono::steady_clock::now();
    const uint64_t passed = ticks() - origin_ticks_;
    return passed ? std::chrono::duration<double, std::micro>(now - origin_).count() /
                        static_cast<double>(passed)
                  : 0;
  }
  uint64_t origin() const { return origin_ticks_; }

 private:
  const std::chrono::steady_clock::time_point origin_ = std::chrono::steady_clock::now();
  const uint64_t origin_ticks_ = ticks();
};

}  // namespace pycomm
