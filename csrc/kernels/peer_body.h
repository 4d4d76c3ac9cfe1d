// SPDX-License-Identifier: MIT
// How blocks of different GPUs wait for one another: signals with release, waits with acquire, all
// bounded, none of them fatal to the context.
//
// Block b of one rank waits for block b of the others only, so it may read or write what those
// blocks own and nothing else. A barrier is one word by block and peer: "I have come to point n of
// my block's life". A lane is a pair of counters, pieces sent and pieces taken. Numbers are
// compared by signed difference, which two ranks' numbers never leave: neither gets further ahead
// than the other's answer lets it. Proved by tests/cpp/device_kernels_protocol_test.cc. See
// device_env.h for what a body is.
#pragma once

#include "kernels/device_env.h"
#include "kernels/device_peers.h"

namespace pycomm {
namespace {

// A look at the host's memory takes a microsecond or more; this many looks at the GPU's own take
// some tens.
constexpr uint32_t kSpinsPerLook = 256;

// What a block's threads know of the call.
struct PeerBlock {
  uint32_t epoch;
  uint32_t parity;
  uint32_t failed;
};

PYCOMM_KERNEL_INLINE constexpr uint64_t flag_word(uint32_t signature, uint32_t number) {
  return uint64_t{signature} << 32 | number;
}

template <class Env>
PYCOMM_KERNEL_INLINE void report(const Env& env, const PeerGroup& group, PeerStatus status,
                                 int peer, uint32_t signature) {
  env.replace_zero(&group.control->status, uint64_t{static_cast<uint8_t>(status)} |
                                               uint64_t(peer) << 8 | uint64_t{signature} << 32);
  env.store_relaxed(&group.flags[group.rank]->broken, uint32_t{1});
  env.store_release(&group.control->abort, uint64_t{1});
}

// Until *word has come to `number`; *found is the word then.
template <class Env>
PYCOMM_KERNEL_INLINE bool wait_for(const Env& env, const PeerGroup& group, const uint64_t* word,
                                   uint32_t number, int peer, uint64_t* found) {
  uint64_t begin = 0;
  for (uint32_t spins = 0;; ++spins) {
    const uint64_t value = env.load_acquire(word);
    const auto come = static_cast<uint32_t>(value);
    if (static_cast<int32_t>(come - number) >= 0) {
      *found = value;
      return true;
    }
    if (spins % kSpinsPerLook == kSpinsPerLook - 1) {
      if (env.load_acquire(&group.control->abort) != 0) {
        report(env, group, PeerStatus::aborted, peer, 0);
        return false;
      }
      const uint64_t now = env.now_ns();
      if (begin == 0) begin = now;
      if (now - begin > group.timeout_ns) {
        report(env, group, PeerStatus::timed_out, peer, 0);
        return false;
      }
    }
    env.pause();
  }
}

// The same for `arrived`. A word that is just there must be of this call; one that has gone on was
// written by a peer that has seen this rank's and compared.
template <class Env>
PYCOMM_KERNEL_INLINE bool wait_for_peer(const Env& env, const PeerGroup& group, int peer,
                                        uint32_t number, uint32_t signature) {
  uint64_t found = 0;
  const uint64_t* const word = &group.flags[group.rank]->arrived[env.block()][peer];
  if (!wait_for(env, group, word, number, peer, &found)) return false;
  const auto theirs = static_cast<uint32_t>(found >> 32);
  if (static_cast<uint32_t>(found) != number || theirs == signature) return true;
  report(env, group, PeerStatus::mismatch, peer, theirs);
  return false;
}

// False where an earlier call has failed: what this one would tell peers, or take from them, would
// belong to another.
template <class Env>
PYCOMM_KERNEL_INLINE bool enter_call(const Env& env, const PeerGroup& group, PeerBlock& block) {
  env.each_thread([&](int thread) {
    if (thread != 0) return;
    block.epoch = group.flags[group.rank]->epochs[env.block()];
    block.failed = env.load_relaxed(&group.flags[group.rank]->broken);
  });
  env.barrier();
  return block.failed == 0;
}

// Says that this block has come to `point` of the call, and waits until all others have. False
// where that failed, on all threads.
template <class Env>
PYCOMM_KERNEL_INLINE bool meet(const Env& env, const PeerGroup& group, PeerBlock& block,
                               uint32_t point, uint32_t signature) {
  env.barrier();
  env.each_thread([&](int thread) {
    if (thread >= group.world_size || thread == group.rank) return;
    env.store_release(&group.flags[thread]->arrived[env.block()][group.rank],
                      flag_word(signature, block.epoch + point));
  });
  env.each_thread([&](int thread) {
    if (thread >= group.world_size || thread == group.rank) return;
    if (!wait_for_peer(env, group, thread, block.epoch + point, signature)) block.failed = 1;
  });
  env.barrier();
  return block.failed == 0;
}

template <class Env>
PYCOMM_KERNEL_INLINE void leave_call(const Env& env, const PeerGroup& group, const PeerBlock& block,
                                     uint32_t points) {
  env.each_thread([&](int thread) {
    if (thread == 0) group.flags[group.rank]->epochs[env.block()] = block.epoch + points;
  });
}

// Which half of the slots this call uses: calls take turns. The last block to have read the number
// of calls raises it, so all blocks read the same.
template <class Env>
PYCOMM_KERNEL_INLINE void take_turn(const Env& env, const PeerGroup& group, PeerBlock& block) {
  env.each_thread([&](int thread) {
    if (thread != 0) return;
    PeerFlags& own = *group.flags[group.rank];
    const uint32_t calls = env.load_relaxed(&own.calls);
    block.parity = calls & 1;
    if (env.fetch_add(&own.entered, 1) + 1 != env.blocks()) return;
    env.store_relaxed(&own.entered, uint32_t{0});
    env.store_relaxed(&own.calls, calls + 1);
  });
  env.barrier();
}

}  // namespace
}  // namespace pycomm
