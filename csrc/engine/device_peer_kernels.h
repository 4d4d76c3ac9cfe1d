// SPDX-License-Identifier: MIT
// Mode K: all_reduce by kernels that write each other's GPU and wait for one another there, on
// memory of a group's pool (device_pool.h).
//
// A tensor that fits a slot is pushed whole to every peer, one meeting; a larger one goes in pieces
// through a buffer on each GPU, of which every rank sums a shard, two meetings each. Either way a
// sum runs in rank order, as in mode S and in the plans "one_shot" and "direct". An algorithm that
// the user has chosen is run by the interpreter of plans (peer_plan.h), or is one of those two.
// Kernels count their meetings in memory of the GPU, so graphs may replay them; captured work has
// flags, slots and buffer of its own, since it may run beside other work. Every wait ends with the
// timeout or with DeviceWords::break_up(); what a kernel has found wrong is DeviceWords::fault().
//
// Set-up is collective. Launches on a stream and returns; one call at a time in a group. The
// device, kernels and pool belong to others and must outlive it.
#pragma once

#include "engine/device_stages.h"
#include "engine/peer_plan.h"

namespace pycomm {

class PeerKernels {
 public:
  // Of a rank's part of the pool, beside slots of this size.
  static size_t bytes_for(int world_size, size_t slot_bytes, const PeerPlan& chosen);
  // Zeroes the flags and tries both kernels. Fails on all ranks or on none.
  static Failure connect(DeviceRendezvous& rendezvous, Device& device, const DeviceKernels& kernels,
                         DevicePool& pool, DeviceWords& words, int rank, int world_size,
                         const PeerPlan& chosen, std::unique_ptr<PeerKernels>* out);

  static bool serve(const Operation& wanted);

  struct Launch {
    bool captured = false;
    uint32_t signature = 0;  // compared between kernels, for graphs replay without their hosts
    std::chrono::nanoseconds timeout{};  // of each wait
  };
  Failure all_reduce(const DeviceWork& work, const Launch& how, void* stream) const;

 private:
  PeerKernels(Device& device, const DeviceKernels& kernels, DevicePool& pool, DeviceWords& words,
              int rank, int world_size, const PeerPlan& chosen);
  Failure zero_flags(void* stream) const;
  Failure try_both(std::byte* seen, void* stream) const;
  Failure check_sums(const DeviceWords& words, const std::byte* seen) const;
  size_t piece_of(const PeerGroup& group, size_t count, DType dtype) const;
  Failure launch(const AllReduceTask& task, const std::string& algorithm, void* stream) const;

  Device& device_;
  const DeviceKernels& kernels_;
  const DevicePool& pool_;
  const PeerPlan chosen_;
  PeerGroup direct_, captured_;
};

}  // namespace pycomm
