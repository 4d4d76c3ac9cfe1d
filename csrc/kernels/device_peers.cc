// SPDX-License-Identifier: MIT
#include "kernels/device_peers.h"

#include "base/limits.h"
#include "kernels/device_plan.h"

namespace pycomm {

bool travels_between_gpus(DType dtype) {
  switch (dtype) {
    case DType::float32:
    case DType::float64:
    case DType::float16:
    case DType::bfloat16:
    case DType::int32:
    case DType::int64:
      return true;
    default:
      return false;
  }
}

size_t one_shot_count(const PeerGroup& group, DType dtype) {
  const size_t slot_bytes = group.slots_bytes / (2 * static_cast<size_t>(group.world_size));
  return slot_bytes / 16 * 16 / size_of(dtype);
}

size_t plan_lanes_bytes(int world_size, size_t piece_bytes) {
  const size_t slot = (piece_bytes + 15) / 16 * 16 + 16;
  return size_t{kPeerBlocksMax} * static_cast<size_t>(world_size) * kLaneSlots * slot;
}

size_t plan_scratch_bytes(const DevicePlan& plan, size_t count, DType dtype) {
  const auto chunks = static_cast<size_t>(plan.work_chunks);
  const size_t unit = kCacheLineBytes / size_of(dtype);
  const size_t longest = ((count + chunks - 1) / chunks + unit - 1) / unit * unit;
  return static_cast<size_t>(plan.scratch_count) * longest * size_of(dtype);
}

}  // namespace pycomm
