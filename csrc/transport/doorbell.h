// SPDX-License-Identifier: MIT
// How a rank that sleeps is woken by a peer that moved something.
//
// One doorbell per rank and group. It lives in shared memory when peers use shm, in private
// memory otherwise. A peer that commits or consumes a frame rings; ringing costs a load of a line
// that rarely changes unless somebody sleeps, and a fence where sleepers cannot fence for both
// sides. Sleepers either wait on a futex or, when
// they must also watch sockets, poll an eventfd that every peer on the host holds. Any thread, any
// process that maps it. The memory belongs to whoever created it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "base/limits.h"
#include "transport/asymmetric_fence.h"

namespace pycomm {

struct alignas(kCacheLineBytes) Doorbell {
  std::atomic<uint32_t> rings{0};  // the futex word
  std::atomic<uint32_t> futex_sleepers{0};
  std::atomic<uint32_t> poll_sleepers{0};
  // The owner's threads run AsymmetricFence::heavy() before they sleep.
  std::atomic<bool> heavy_sleepers{AsymmetricFence::join()};

  // Whatever was published before this call is seen by a sleeper that armed itself, or the sleeper
  // is woken: the fence pairs with the one in arm().
  void ring(int event_fd) {
    if (heavy_sleepers.load(std::memory_order_relaxed) && AsymmetricFence::joined()) {
      AsymmetricFence::light();
    } else {
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    if (futex_sleepers.load(std::memory_order_relaxed) != 0 ||
        poll_sleepers.load(std::memory_order_relaxed) != 0) {
      wake(event_fd);
    }
  }
  void wake(int event_fd);
};

// How far a rank is, for peers that must say so after it has died. Written by its owner only.
struct alignas(kCacheLineBytes) RankProgress {
  std::atomic<uint64_t> begun{0};      // collectives begun
  std::atomic<uint64_t> completed{0};  // collectives completed
};

// The first page of a rank's inbox.
struct RankPage {
  Doorbell bell;
  RankProgress progress;
};
static_assert(sizeof(RankPage) <= kPageBytes);

// Sleeps while *word == value, at most `timeout`. Shared between processes.
void futex_wait(std::atomic<uint32_t>& word, uint32_t value, std::chrono::nanoseconds timeout);
void futex_wake_all(std::atomic<uint32_t>& word);

}  // namespace pycomm
