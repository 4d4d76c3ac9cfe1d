// SPDX-License-Identifier: MIT
// Device memory that all ranks on one GPU map: for each rank slots that it puts its input into, and
// some that hold results, which lie with rank 0.
//
// Set up collectively: shared by file descriptor, or by IPC handle where that does not work, tried
// by a round trip in which every rank reads what every other wrote. Otherwise as Device: any
// thread.
#pragma once

#include <vector>

#include "engine/device_mode.h"
#include "engine/device_rendezvous.h"
#include "engine/device_words.h"

namespace pycomm {

// Of a rank's input, and of results: two for pieces in turn, one for captured work, which may run
// beside them; see device_group.h.
inline constexpr int kInSlots = 3, kResultSlots = 3, kCapturedSlot = 2;

class DevicePool {
 public:
  // A multiple of kDeviceSlotBytesMin for which the ranks' memory stays within `pool_bytes`.
  static size_t slot_bytes_for(int world_size, size_t pool_bytes);

  // Collective. Fails on all ranks or on none.
  static Failure connect(DeviceRendezvous& rendezvous, Device& device, DeviceWords& words, int rank,
                         const std::vector<DeviceCard>& cards, size_t pool_bytes,
                         std::unique_ptr<DevicePool>* out);
  ~DevicePool();
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  std::byte* in(int rank, int slot) const {
    return at(rank) + static_cast<size_t>(slot) * slot_bytes_;
  }
  std::byte* result(int slot) const { return in(0, kInSlots + slot); }
  size_t slot_bytes() const { return slot_bytes_; }
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
  DevicePool(Device& device, int rank, int world_size, ShareKind kind, size_t slot_bytes);
  std::byte* at(int rank) const {
    return static_cast<std::byte*>(memory_[static_cast<size_t>(rank)].data);
  }
  Failure share(DeviceRendezvous& rendezvous);
  Failure try_it(DeviceRendezvous& rendezvous, DeviceWords& words, uint64_t piece);
  Failure write_and_read(DeviceWords& words, uint64_t piece, void* stream);

  Device& device_;
  const int rank_;
  const ShareKind kind_;
  const size_t slot_bytes_;
  std::vector<SharedAllocation> memory_;  // by rank
};

}  // namespace pycomm
