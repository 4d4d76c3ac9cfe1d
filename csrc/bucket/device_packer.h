// SPDX-License-Identifier: MIT
// The tensors of one bucket into it or from it, on a device, with one launch.
//
// Where tensors lie is a table in the device's memory: what each block of the kernel moves, which
// never changes, and the tensors' addresses. Autograd's allocator hands out the same addresses in
// one step after the other, so the host compares them with those of the last launch, which costs
// nanoseconds each, and only where they differ sends new ones ahead of the kernel, through pinned
// memory that no earlier launch can still be read from.
//
// Launches come one behind the other on one stream, under one lock of the caller; nothing blocks
// but the destructor, for a moment. The table's memory is the caller's and outlives what has been
// launched. The device and the kernels outlive this.
#pragma once

#include <span>
#include <vector>

#include "base/error.h"
#include "device/device.h"
#include "kernels/device_kernels.h"

namespace pycomm {

class DevicePacker {
 public:
  // Tensor i has counts[i] elements, which begin at element begins[i] of the bucket.
  DevicePacker(Device& device, const DeviceKernels& kernels, std::span<const size_t> begins,
               std::span<const size_t> counts);
  // Waits a short while for the stream; pinned memory that it may still read then stays.
  ~DevicePacker();
  DevicePacker(const DevicePacker&) = delete;
  DevicePacker& operator=(const DevicePacker&) = delete;

  // Types as DeviceKernels::pack() has them.
  struct Sides {
    DType tensors = DType::float32;
    void* bucket = nullptr;
    DType in_bucket = DType::float32;
    double scale = 1;
  };

  size_t table_bytes() const { return tiles_bytes() + tensors_ * sizeof(void*); }
  // Before the first launch: table_bytes() of the device's memory, aligned to 16.
  void place(void* table) { table_ = static_cast<std::byte*>(table); }

  // On the calling thread's current device. A tensor may be the very place in the bucket that it
  // goes to, if the types are the same; otherwise nothing overlaps.
  Failure pack(const Sides& sides, std::span<void* const> tensors, void* stream);
  Failure unpack(const Sides& sides, std::span<void* const> tensors, void* stream);

  size_t uploads() const { return uploads_; }  // of addresses, so far
  size_t pinned_bytes() const;

 private:
  struct Staged {
    HostAllocation memory;  // a word, then what is sent
    uint64_t uses = 0;
    bool sent() const;
  };
  size_t tiles_bytes() const { return tiles_.size() * sizeof(PackTile); }
  Failure free_staged(Staged** out);
  Failure upload(std::span<void* const> tensors, void* stream);
  Failure launch(bool to_bucket, const Sides& sides, std::span<void* const> tensors, void* stream);

  Device& device_;
  const DeviceKernels& kernels_;
  const std::vector<PackTile> tiles_;
  const size_t tensors_;
  std::byte* table_ = nullptr;
  std::vector<void*> addresses_;  // in the table, or on their way to it
  std::vector<Staged> staged_;
  size_t uploads_ = 0;
};

}  // namespace pycomm
