// SPDX-License-Identifier: MIT
// The one home of the waiting policy: spin briefly, yield, then sleep until a channel may have
// moved.
//
// Waiter knows what to sleep on: the rank's doorbell alone, or its eventfd together with the
// sockets of peers on other hosts. Backoff counts one caller's fruitless tries. Any number of
// threads may sleep on one Waiter, each with its own Backoff. The doorbell must outlive the Waiter.
#pragma once

#include <chrono>
#include <vector>

#include "base/fd.h"
#include "transport/doorbell.h"

namespace pycomm {

class Waiter {
 public:
  // `sockets` are watched for reading; may be empty.
  Waiter(Doorbell* doorbell, int event_fd, std::vector<int> sockets);
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  // To sleep without losing a wake-up: arm, look once more, then sleep, then disarm.
  uint32_t arm();
  void sleep(uint32_t ticket, std::chrono::nanoseconds timeout, bool want_write);
  void disarm();
  // Wakes every sleeper of this rank, from any thread.
  void wake();

 private:
  Doorbell* doorbell_;
  int event_fd_;
  std::vector<int> sockets_;
};

enum class Pause { spin, yield, sleep };

class Backoff {
 public:
  Backoff(int spins, int yields) : spins_(spins), yields_(yields) {}
  void reset() { tries_ = 0; }
  // Pauses the processor or yields it; returns Pause::sleep, having done nothing, when it is time
  // to sleep.
  Pause pause();

 private:
  int spins_;
  int yields_;
  int tries_ = 0;
};

}  // namespace pycomm
