// SPDX-License-Identifier: MIT
// One point in time by which something must have happened. A value; thread-safe. Every wait in
// pycomm takes one, so that nothing can block for ever by omission.
#pragma once

#include <chrono>

namespace pycomm {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline after(std::chrono::nanoseconds duration) {
    const auto now = Clock::now();
    return duration >= Clock::time_point::max() - now ? never() : Deadline(now + duration);
  }
  static Deadline never() { return Deadline(Clock::time_point::max()); }

  bool is_never() const { return at_ == Clock::time_point::max(); }
  bool expired() const { return !is_never() && Clock::now() >= at_; }
  // Zero when expired.
  std::chrono::nanoseconds remaining() const {
    if (is_never()) return std::chrono::nanoseconds::max();
    const auto left = at_ - Clock::now();
    return left.count() > 0 ? std::chrono::duration_cast<std::chrono::nanoseconds>(left)
                            : std::chrono::nanoseconds(0);
  }
  int remaining_ms_at_most(int limit_ms) const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(remaining()).count();
    return left < limit_ms ? static_cast<int>(left) : limit_ms;
  }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

}  // namespace pycomm
