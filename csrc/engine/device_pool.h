// SPDX-License-Identifier: MIT
// Device memory that all ranks of a group map: for each rank slots that it puts its input into, and
// some that hold results; those lie with rank 0 where all share a GPU, else with each rank that
// makes some, so that it writes to its own GPU. In mode K also what kernels meet through; see
// device_peer_kernels.h.
//
// Set up collectively: shared by file descriptor, or by IPC handle where that does not work, tried
// by a round trip in which every rank reads what every other wrote. Otherwise as Device: any
// thread.
#pragma once

#include <functional>
#include <vector>

#include "engine/device_mode.h"
#include "engine/device_rendezvous.h"
#include "engine/device_words.h"

namespace pycomm {

// Of a rank's input, and of results: two for pieces in turn, one for captured work, which may run
// beside them; see device_group.h.
inline constexpr int kInSlots = 3, kResultSlots = 3, kCapturedSlot = 2;

struct PoolLayout {
  size_t slot_bytes = 0;     // a multiple of kDeviceSlotBytesMin
  bool own_results = false;  // every rank has result slots
  size_t peer_bytes = 0;     // of each rank, for kernels that wait for one another

  // The largest slots for which a GPU's share stays within `pool_bytes`, or else the smallest.
  // `peer_bytes`: of each rank, beside slots of a size.
  static PoolLayout choose(std::span<const DeviceCard> cards, size_t pool_bytes,
                           const std::function<size_t(size_t slot_bytes)>& peer_bytes);
  size_t bytes_of(int rank) const;
};

class DevicePool {
 public:
  // Collective. Fails on all ranks or on none.
  static Failure connect(DeviceRendezvous& rendezvous, Device& device, DeviceWords& words, int rank,
                         const std::vector<DeviceCard>& cards, const PoolLayout& layout,
                         std::unique_ptr<DevicePool>* out);
  ~DevicePool();
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  std::byte* in(int rank, int slot) const {
    return at(rank) + static_cast<size_t>(slot) * layout_.slot_bytes;
  }
  std::byte* result(int leader, int slot) const {
    return in(layout_.own_results ? leader : 0, kInSlots + slot);
  }
  std::byte* peers(int rank) const {
    return at(rank) + layout_.bytes_of(rank) - layout_.peer_bytes;
  }
  size_t slot_bytes() const { return layout_.slot_bytes; }
  size_t peer_bytes() const { return layout_.peer_bytes; }
  ShareKind kind() const { return kind_; }
  // On the GPU, of this rank's own.
  size_t bytes() const { return memory_[static_cast<size_t>(rank_)].bytes; }
  // In this order. What a peer still maps goes with its last mapping; but memory behind an IPC
  // handle must not be closed before all peers have closed their mappings.
  void close_imported();
  void close_own();
  // A stream may still use it: it stays to the end of the process.
  void abandon() { memory_.assign(memory_.size(), {}); }

 private:
  DevicePool(Device& device, int rank, int world_size, ShareKind kind, const PoolLayout& layout);
  std::byte* at(int rank) const {
    return static_cast<std::byte*>(memory_[static_cast<size_t>(rank)].data);
  }
  Failure share(DeviceRendezvous& rendezvous);
  Failure try_it(DeviceRendezvous& rendezvous, DeviceWords& words, uint64_t piece);
  Failure write_and_read(DeviceWords& words, uint64_t piece, void* stream, std::byte* seen);
  Failure check_marks(const std::byte* seen) const;

  Device& device_;
  const int rank_;
  const ShareKind kind_;
  const PoolLayout layout_;
  std::vector<SharedAllocation> memory_;  // by rank
};

}  // namespace pycomm
