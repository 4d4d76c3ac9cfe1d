// SPDX-License-Identifier: MIT
#include "transport/doorbell.h"

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace pycomm {

static_assert(std::atomic<uint32_t>::is_always_lock_free);

void Doorbell::wake(int event_fd) {
  rings.fetch_add(1, std::memory_order_seq_cst);
  if (futex_sleepers.load(std::memory_order_seq_cst) != 0) futex_wake_all(rings);
  if (poll_sleepers.load(std::memory_order_seq_cst) != 0 && event_fd >= 0) {
    ::eventfd_write(event_fd, 1);
  }
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t value, std::chrono::nanoseconds timeout) {
  timespec limit{};
  limit.tv_sec = timeout.count() / 1'000'000'000;
  limit.tv_nsec = timeout.count() % 1'000'000'000;
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, &limit, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr,
            0);
}

}  // namespace pycomm
