// SPDX-License-Identifier: MIT
// The one home of the waiting policy: spin briefly, yield, then sleep until a channel may have
// moved.
//
// Waiter knows what to sleep on: the rank's doorbell alone, or its eventfd together with the
// sockets of peers on other hosts. Backoff counts one caller's fruitless tries. Any number of
// threads may sleep on one Waiter, each with its own Backoff. The doorbell must outlive the Waiter.
//
// Sockets are watched for changes, not for states (edge-triggered): data that nobody waits for yet,
// or room in a connection that is not full, wakes nobody twice. A change is told to one thread, so
// only one sleeps on the sockets at a time; the others sleep on the doorbell, and it wakes them
// when it leaves.
#pragma once

#include <atomic>
#include <chrono>
#include <vector>

#include "base/fd.h"
#include "transport/doorbell.h"

namespace pycomm {

class Waiter {
 public:
  // `sockets` may be empty. All descriptors must stay open as long as anybody sleeps.
  Waiter(Doorbell* doorbell, int event_fd, const std::vector<int>& sockets);
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  // To sleep without losing a wake-up: arm, look once more, then sleep, then disarm.
  uint32_t arm();
  void sleep(uint32_t ticket, std::chrono::nanoseconds timeout);
  void disarm();
  // Wakes every sleeper of this rank, from any thread.
  void wake();

 private:
  void sleep_on_sockets(uint32_t ticket, std::chrono::nanoseconds timeout);

  Doorbell* doorbell_;
  int event_fd_;
  Fd epoll_;                          // none: the doorbell alone
  std::atomic<bool> watched_{false};  // some thread sleeps on the sockets
};

enum class Pause { poll, spin, yield, sleep };

class Backoff {
 public:
  Backoff(int polls, int spins, int yields) : polls_(polls), spins_(spins), yields_(yields) {}
  void reset() { tries_ = 0; }
  // Does nothing, pauses the processor or yields it; returns Pause::sleep, having done nothing,
  // when it is time to sleep.
  Pause pause();

 private:
  int polls_;
  int spins_;
  int yields_;
  int tries_ = 0;
};

}  // namespace pycomm
