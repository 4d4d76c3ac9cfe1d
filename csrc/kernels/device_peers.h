// SPDX-License-Identifier: MIT
// A group of GPUs that write each other's memory, one rank each: what a kernel needs to find its
// peers, wait for them, and stop waiting.
//
// Every rank owns PeerFlags, zeroed once before the group's first call, slots and a buffer, all
// three mapped by all others; and a PeerControl in host memory that its own device can reach. These
// values hold addresses as this rank's device sees them; the group that made them owns the memory,
// which must outlive every launch. One call at a time in a group, on every rank the same calls in
// the same order. After a call has failed the flags are worth nothing: abort all ranks, wait for
// their streams, and zero the flags of all or make new ones.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace pycomm {

inline constexpr int kPeersMax = 8;
// Blocks that may wait for one another. All of them must run at once, on every GPU of the group.
inline constexpr int kPeerBlocksMax = 32;
// A power of two, so that counters may wrap. Halving among 8 ranks sends four chunks in a row.
inline constexpr int kLaneSlots = 4;

// Words that others write hold a number in the lower half, which only grows and may wrap, and in
// the upper half the signature of the call it belongs to.
struct PeerFlags {
  uint64_t arrived[kPeerBlocksMax][kPeersMax];  // by block and writing rank
  uint64_t sent[kPeerBlocksMax][kPeersMax];     // lanes: pieces that the peer has put into slots
  uint64_t taken[kPeerBlocksMax][kPeersMax];    // lanes: pieces of this rank that the peer has read
  // The rest only this rank touches.
  uint32_t epochs[kPeerBlocksMax];
  uint32_t lane_sent[kPeerBlocksMax][kPeersMax];
  uint32_t lane_taken[kPeerBlocksMax][kPeersMax];
  uint32_t calls;    // of one_shot; its last bit says which half of the slots is in use
  uint32_t entered;  // blocks of the call at hand that have read `calls`
  uint32_t broken;   // a wait has failed: later calls, graphs' replays for one, do nothing
};

enum class PeerStatus : uint8_t { fine, aborted, timed_out, mismatch };

// The host stores abort = 1 to end all waits; the kernel stores status once, and then abort.
struct PeerControl {
  uint64_t abort;
  uint64_t status;  // 0, or a PeerFault
};

// Who was waited for in vain; of a mismatch, the signature that the peer came with.
struct PeerFault {
  PeerStatus status = PeerStatus::fine;
  int peer = -1;
  uint32_t signature = 0;
};
constexpr uint64_t pack_fault(const PeerFault& fault) {
  return uint64_t{static_cast<uint8_t>(fault.status)} |
         uint64_t{static_cast<uint8_t>(fault.peer)} << 8 | uint64_t{fault.signature} << 32;
}
constexpr PeerFault unpack_fault(uint64_t word) {
  return {static_cast<PeerStatus>(word & 255), static_cast<int>(word >> 8 & 255),
          static_cast<uint32_t>(word >> 32)};
}

struct PeerGroup {
  int rank = 0;
  int world_size = 1;
  PeerFlags* flags[kPeersMax] = {};
  // Where ranks push to one another. Of `slots_bytes`, a multiple of 16, on every rank.
  char* slots[kPeersMax] = {};
  size_t slots_bytes = 0;
  // What plans send through, kLaneSlots for each block and peer; of `lanes_bytes` on every rank.
  char* lanes[kPeersMax] = {};
  size_t lanes_bytes = 0;
  // What two_shot works in, at least a tensor's size; of `buffer_bytes` on every rank.
  char* buffers[kPeersMax] = {};
  size_t buffer_bytes = 0;
  PeerControl* control = nullptr;
  uint64_t timeout_ns = 0;  // of one wait; never 0
};

// An all_reduce of `count` elements. `input` may be `output`. Where the input lies in
// group.buffers[rank], at the same offset on every rank, and is the output too, nothing is copied.
// All ranks pass the same but for addresses.
struct AllReduceTask {
  PeerGroup group;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  int divisor = 1;
  const void* input = nullptr;
  void* output = nullptr;
  size_t count = 0;
  uint32_t signature = 0;  // of everything ranks must agree on; compared at the first wait
};

// What the kernels of a group exchange; other types they refuse.
bool travels_between_gpus(DType dtype);
// The most elements that one_shot takes.
size_t one_shot_count(const PeerGroup& group, DType dtype);

// Which plan of plan/algorithms.h a kernel carries out: its result has the bits of that plan's.
inline constexpr const char* kOneShotPlan = "one_shot";
inline constexpr const char* kTwoShotPlan = "direct";

}  // namespace pycomm
