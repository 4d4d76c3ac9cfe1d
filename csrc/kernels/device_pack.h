// SPDX-License-Identifier: MIT
// How many tensors lie in one bucket, as a table that stays on the device: made once for a bucket,
// so that a launch costs the host nothing that grows with the number of tensors.
//
// A tile is one block's work. Tables are plain values: make one here, copy it to device memory,
// and hand its address to DeviceKernels::pack and unpack for as long as the bucket's layout is the
// same. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/dtype.h"

namespace pycomm {

// 16 KiB of float32: a block moves it in some 3 us, enough to hide looking up the next one, and a
// bucket of 25 MiB still has three for each block that a large GPU runs at once.
inline constexpr uint32_t kPackTileElements = 4096;

struct alignas(16) PackTile {
  uint64_t in_tensor, in_bucket;  // first element
  uint32_t tensor, count;
  uint64_t unused = 0;
};

// Tensor i has counts[i] elements, which begin at element begins[i] of the bucket.
std::vector<PackTile> pack_tiles(std::span<const size_t> begins, std::span<const size_t> counts);

// What is put into *flags: an element that was finite is infinite in the target; an element was
// infinite or NaN already.
inline constexpr uint32_t kPackOverflowed = 1;
inline constexpr uint32_t kPackWasNotFinite = 2;

struct PackTask {
  const PackTile* tiles = nullptr;  // device memory
  size_t tile_count = 0;
  // Addresses of all tensors: a table in device memory, or in host memory that the device can read.
  // Read when the kernel runs.
  void* const* tensors = nullptr;
  DType tensor_dtype = DType::float32;
  void* bucket = nullptr;
  DType bucket_dtype = DType::float32;
  double scale = 1;
  bool accumulate = false;    // target = target + source * scale
  uint32_t* flags = nullptr;  // device or mapped host memory; nullptr: elements are not looked at
};

}  // namespace pycomm
