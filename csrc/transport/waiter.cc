// SPDX-License-Identifier: MIT
#include "transport/waiter.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>

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

Waiter::Waiter(Doorbell* doorbell, int event_fd, std::vector<int> sockets)
    : doorbell_(doorbell), event_fd_(event_fd), sockets_(std::move(sockets)) {}

uint32_t Waiter::arm() {
  auto& sleepers = sockets_.empty() ? doorbell_->futex_sleepers : doorbell_->poll_sleepers;
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  return doorbell_->rings.load(std::memory_order_seq_cst);
}

void Waiter::sleep(uint32_t ticket, std::chrono::nanoseconds timeout, bool want_write) {
  if (sockets_.empty()) {
    futex_wait(doorbell_->rings, ticket, timeout);
    return;
  }
  if (doorbell_->rings.load(std::memory_order_seq_cst) != ticket) return;
  std::vector<pollfd> fds;
  fds.reserve(sockets_.size() + 1);
  fds.push_back({event_fd_, POLLIN, 0});
  const short events = static_cast<short>(POLLIN | (want_write ? POLLOUT : 0));
  for (const int fd : sockets_) fds.push_back({fd, events, 0});
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
  ::poll(fds.data(), fds.size(), static_cast<int>(std::min<long long>(ms, 1000)));
  if (fds[0].revents & POLLIN) {
    // Drained by whoever comes first; others see that `rings` has changed.
    eventfd_t value;
    ::eventfd_read(event_fd_, &value);
  }
}

void Waiter::disarm() {
  auto& sleepers = sockets_.empty() ? doorbell_->futex_sleepers : doorbell_->poll_sleepers;
  sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

void Waiter::wake() { doorbell_->wake(event_fd_); }

Pause Backoff::pause() {
  if (tries_ < spins_) {
    ++tries_;
    cpu_relax();
    return Pause::spin;
  }
  if (tries_ < spins_ + yields_) {
    ++tries_;
    ::sched_yield();
    return Pause::yield;
  }
  return Pause::sleep;
}

}  // namespace pycomm
