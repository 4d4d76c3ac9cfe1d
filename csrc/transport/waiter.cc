// SPDX-License-Identifier: MIT
#include "transport/waiter.h"

#include <sched.h>
#include <sys/epoll.h>

#include <algorithm>
#include <climits>

#include "base/error.h"

namespace pycomm {
namespace {

void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Waiter::Waiter(Doorbell* doorbell, int event_fd, const std::vector<int>& sockets)
    : doorbell_(doorbell), event_fd_(event_fd) {
  if (sockets.empty()) return;
  epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
  const auto watch = [&](int fd, uint32_t events) {
    epoll_event event{};
    event.events = events | EPOLLET;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      throw_system("cannot watch a socket");
    }
  };
  watch(event_fd_, EPOLLIN);
  for (const int fd : sockets) watch(fd, EPOLLIN | EPOLLOUT);
}

// Which of the two a thread will sleep on shows only later.
uint32_t Waiter::arm() {
  doorbell_->futex_sleepers.fetch_add(1, std::memory_order_seq_cst);
  if (epoll_) doorbell_->poll_sleepers.fetch_add(1, std::memory_order_seq_cst);
  // Pairs with the fence in ring(): either the peer sees us armed, or we see what it published.
  if (!doorbell_->heavy_sleepers.load(std::memory_order_relaxed)) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
  } else if (!AsymmetricFence::heavy()) {
    doorbell_->heavy_sleepers.store(false, std::memory_order_seq_cst);
  }
  return doorbell_->rings.load(std::memory_order_seq_cst);
}

void Waiter::sleep(uint32_t ticket, std::chrono::nanoseconds timeout) {
  if (!epoll_ || watched_.exchange(true, std::memory_order_seq_cst)) {
    futex_wait(doorbell_->rings, ticket, timeout);
    return;
  }
  sleep_on_sockets(ticket, timeout);
  watched_.store(false, std::memory_order_seq_cst);
  // Whoever armed itself while we watched may wait for what we were told, and must watch from now
  // on.
  if (doorbell_->futex_sleepers.load(std::memory_order_seq_cst) > 1) {
    doorbell_->rings.fetch_add(1, std::memory_order_seq_cst);
    futex_wake_all(doorbell_->rings);
  }
}

void Waiter::sleep_on_sockets(uint32_t ticket, std::chrono::nanoseconds timeout) {
  if (doorbell_->rings.load(std::memory_order_seq_cst) != ticket) return;
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
  epoll_event events[16];  // what they say does not matter
  ::epoll_wait(epoll_.get(), events, 16, static_cast<int>(std::min<long long>(ms, INT_MAX)));
}

void Waiter::disarm() {
  if (epoll_) doorbell_->poll_sleepers.fetch_sub(1, std::memory_order_seq_cst);
  doorbell_->futex_sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

void Waiter::wake() { doorbell_->wake(event_fd_); }

WaitPolicy wait_policy_for(Crowding crowding, WaitRole role, bool sockets) {
  if (role == WaitRole::progress && crowding == Crowding::crowded) {
    return {kPollsCrowded, 0, kYieldsProgress};
  }
  if (role == WaitRole::progress && crowding == Crowding::even) {
    return {kPollsCrowded, kSpinsProgress, 0us};
  }
  if (crowding == Crowding::crowded) return {kPollsCrowded, 0, kYieldsCrowded};
  if (sockets) return {kPollsSockets, 0, kYields};
  return {kPolls, kSpins, kYields};
}

Pause Backoff::pause() {
  if (tries_ < policy_.polls) {
    ++tries_;
    return Pause::poll;
  }
  if (tries_ < policy_.polls + policy_.spins) {
    ++tries_;
    cpu_relax();
    return Pause::spin;
  }
  const auto now = std::chrono::steady_clock::now();
  if (tries_ == policy_.polls + policy_.spins) {
    ++tries_;
    yields_end_ = now + policy_.yields;
  }
  if (now >= yields_end_) return Pause::sleep;
  ::sched_yield();
  return Pause::yield;
}

}  // namespace pycomm
