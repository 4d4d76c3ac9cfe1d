// SPDX-License-Identifier: MIT
// The catalogue: which algorithms exist for which collective, and the one function that builds a
// plan by name. Pure functions, callable from any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "plan/plan.h"

namespace pycomm {

// Names of the algorithms that implement `collective`, the one preferred for small tensors on one
// host first. all_reduce: one_shot, direct, ring, recursive_doubling, halving_doubling,
// double_binary_tree. Others: see algorithms.cc.
std::vector<std::string_view> algorithms_for(Collective collective);

// The plan of `rank`. Throws UsageError naming the choices when `algorithm` does not implement
// `collective`, or when rank, root or world_size are out of range.
Plan make_plan(Collective collective, std::string_view algorithm, int world_size, int rank,
               int root = 0);

// All ranks' plans, for checking and printing.
PlanSet make_plans(Collective collective, std::string_view algorithm, int world_size, int root = 0);

// Two levels: within hosts, then between them (plan/hierarchy.h). `hosts[i]` lists the ranks of
// host i. all_reduce is direct within a host, and between hosts `inter`, an all_reduce algorithm or
// kGrid; "ring" where it is not named.
bool has_hierarchical_plan(Collective collective);
Plan make_hierarchical_plan(const std::vector<std::vector<int>>& hosts, std::string_view inter,
                            int rank);
Plan make_hierarchical_plan(Collective collective, const std::vector<std::vector<int>>& hosts,
                            int rank, int root = 0);

// Two levels in a group without hosts, for all_reduce and reduce_scatter: direct along the rows and
// the columns of a grid. Partial sums are rounded once more than by "direct", on a narrow wire, and
// a rank has some 2 sqrt(p) partners in place of p - 1.
inline constexpr const char* kGrid = "grid";
Plan make_grid_plan(Collective collective, int world_size, int rank);

}  // namespace pycomm
