// SPDX-License-Identifier: MIT
// The all_reduce that a user has chosen by name, as the kernels of a group in mode K carry it out:
// by a kernel of its own, or this rank's plan for the GPU's interpreter, proved not to stall on any
// rank.
//
// A value, made alike on all ranks; any thread.
#pragma once

#include <optional>
#include <string>

#include "kernels/device_plan.h"

namespace pycomm {

struct PeerPlan {
  std::string algorithm;           // empty: by size
  std::optional<DevicePlan> plan;  // nothing for kOneShotPlan and kTwoShotPlan
  int scratch_count_max = 0;       // of all ranks, whose pieces must be cut alike

  // Of `count` elements, how many go in a piece for which scratch of so many bytes is enough on
  // every rank.
  size_t piece_of(size_t count, DType dtype, size_t scratch_bytes) const;
};

// An empty one where no kernel runs the algorithm; `why` says that then.
PeerPlan make_peer_plan(const std::string& algorithm, int rank, int world_size, std::string* why);

}  // namespace pycomm
