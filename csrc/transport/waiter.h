// SPDX-License-Identifier: MIT
// The one home of the waiting policy: spin briefly, yield, then sleep until a channel may have
// moved.
//
// How long each takes is a WaitPolicy: it depends on whether ranks have cores of their own, and on
// what else the waiting thread keeps from running. Waiter knows what to sleep on: the rank's
// doorbell alone, or its eventfd together with the sockets of peers on other hosts. Any number of
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
#include "transport/usable_cores.h"

namespace pycomm {

class Waiter {
 public:
  // `sockets` may be empty. All descriptors must stay open as long as anybody sleeps.
  Waiter(Doorbell* doorbell, int event_fd, const std::vector<int>& sockets);
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  bool watches_sockets() const { return static_cast<bool>(epoll_); }
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

enum class WaitRole {
  caller,    // a thread of the program, which has nothing else to do
  progress,  // a thread of the engine, beside one of the program that may compute
};

struct WaitPolicy {
  int polls = 0;                       // looks without a pause
  int spins = 0;                       // looks with a pause of the processor
  std::chrono::nanoseconds yields{0};  // for so long the core is given away between looks
};
// `sockets`: some peers are reached through the kernel.
WaitPolicy wait_policy_for(Crowding crowding, WaitRole role, bool sockets);

enum class Pause { poll, spin, yield, sleep };

// Counts the fruitless looks of one thread.
class Backoff {
 public:
  explicit Backoff(WaitPolicy policy) : policy_(policy) {}
  void reset() { tries_ = 0; }
  // Pauses as the policy says; returns Pause::sleep, having done nothing, when it is time to sleep.
  Pause pause();

 private:
  const WaitPolicy policy_;
  int tries_ = 0;
  std::chrono::steady_clock::time_point yields_end_{};
};

}  // namespace pycomm
