// SPDX-License-Identifier: MIT
#include "engine/peer_plan.h"

#include <algorithm>

#include "engine/lower_plan.h"
#include "plan/algorithms.h"

namespace pycomm {

size_t PeerPlan::piece_of(size_t count, DType dtype, size_t scratch_bytes) const {
  DevicePlan largest = *plan;
  largest.scratch_count = static_cast<int16_t>(scratch_count_max);
  while (count > 1 && plan_scratch_bytes(largest, count, dtype) > scratch_bytes) {
    count = (count + 1) / 2;
  }
  return count;
}

PeerPlan make_peer_plan(const std::string& algorithm, int rank, int world_size, std::string* why) {
  if (algorithm.empty()) return {};
  PeerPlan chosen;
  chosen.algorithm = algorithm;
  if (algorithm == kOneShotPlan || algorithm == kTwoShotPlan) return chosen;
  const auto known = algorithms_for(Collective::all_reduce);
  if (std::find(known.begin(), known.end(), algorithm) == known.end()) {
    *why = "it is none within a host";
    return {};
  }
  std::vector<DevicePlan> plans(static_cast<size_t>(world_size));
  for (int r = 0; r < world_size; ++r) {
    DevicePlan& plan = plans[static_cast<size_t>(r)];
    *why = lower_plan(Program(make_plan(Collective::all_reduce, algorithm, world_size, r)), &plan);
    if (!why->empty()) return {};
    chosen.scratch_count_max = std::max<int>(chosen.scratch_count_max, plan.scratch_count);
  }
  *why = check_in_order(plans);
  if (!why->empty()) return {};
  chosen.plan = plans[static_cast<size_t>(rank)];
  return chosen;
}

}  // namespace pycomm
