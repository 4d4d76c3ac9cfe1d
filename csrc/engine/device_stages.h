// SPDX-License-Identifier: MIT
// What a rank does with one piece of an operation in mode S, once the words say that it may: put
// its input where others can read it, carry out the sum for all of them, take its result.
//
// Operations of two kinds. Led: one rank, the leader, makes the result for all, reading its own
// tensor where it lies (all_reduce, reduce, broadcast). Others: every rank reads what it needs from
// the slots of all. A sum runs in rank order whoever computes it. Enqueues on a stream and returns;
// the caller keeps one lock. The device, kernels and pool belong to others and must outlive it.
#pragma once

#include "engine/device_pool.h"
#include "engine/operation.h"
#include "kernels/device_kernels.h"

namespace pycomm {

// An operation as its device carries it out. Regions as in Operation::work, addresses the device's.
struct DeviceWork {
  Collective collective = Collective::all_reduce;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  int root = 0, leader = 0;
  Regions regions;
  size_t count = 0;  // elements of the tensor, or of a block where ranks hold blocks

  bool led() const;
};

// Elements [begin, begin + count) of the tensor or of every block, through the slots number `slot`.
struct DevicePiece {
  size_t begin = 0, count = 0;
  int slot = 0, result_slot = 0;
};

class DeviceStages {
 public:
  DeviceStages(Device& device, const DeviceKernels& kernels, const DevicePool& pool, int rank,
               int world_size)
      : device_(device), kernels_(kernels), pool_(pool), rank_(rank), world_size_(world_size) {}

  // Mode S has stages for it.
  static bool serve(const Operation& wanted);
  // Elements that fit a piece.
  size_t piece_count(const DeviceWork& work) const;

  Failure put(const DeviceWork& work, const DevicePiece& piece, void* stream) const;
  Failure lead(const DeviceWork& work, const DevicePiece& piece, void* stream) const;
  Failure take(const DeviceWork& work, const DevicePiece& piece, void* stream) const;

 private:
  Failure put_blocks(const DeviceWork& work, const DevicePiece& piece, void* stream) const;
  Failure take_blocks(const DeviceWork& work, const DevicePiece& piece, void* stream) const;
  Failure take_sum(const DeviceWork& work, const DevicePiece& piece, void* stream) const;
  Failure copy(void* to, const void* from, size_t bytes, void* stream) const;
  Failure reduce(const DeviceWork& work, const std::vector<const void*>& sources, void* target,
                 void* copy, size_t count, void* stream) const;

  Device& device_;
  const DeviceKernels& kernels_;
  const DevicePool& pool_;
  const int rank_, world_size_;
};

}  // namespace pycomm
