// SPDX-License-Identifier: MIT
// Which algorithm carries out an operation: the caller's choice (PYCOMM_ALGO), else by size, world
// size and transport. Pure, so that all ranks choose alike: it may depend only on what all ranks
// know. Any thread.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

#include "base/dtype.h"

namespace pycomm {

// Two levels, within hosts and between them: an algorithm of every collective that has such a plan.
inline constexpr const char* kHierarchical = "hierarchical";

// Collective to algorithm, from a list such as "ring" (for every collective that has it) or
// "all_reduce=ring,broadcast=direct". Throws UsageError naming the choices.
using AlgorithmChoices = std::map<Collective, std::string>;
AlgorithmChoices parse_algorithms(const std::string& text);

// `bytes` is the size of the tensor, or of one rank's block. `one_host` says that all ranks share
// one. `size_factor` moves the sizes at which algorithms change within a host, see tuner.h.
std::string_view select_algorithm(Collective collective, size_t bytes, int world_size,
                                  bool one_host, const AlgorithmChoices& choices,
                                  double size_factor = 1);

// Whether a two-level plan (make_hierarchical_plan) is used instead: there is one, no choice was
// made, and some of several hosts hold several ranks. By the size of a tensor only for all_reduce,
// whose one-level algorithms need fewer steps when it is small.
bool two_levels_pay(Collective collective, size_t bytes, int world_size, size_t hosts,
                    const AlgorithmChoices& choices);

// The same for tensors in a narrow wire format, all_reduce and reduce_scatter: only algorithms that
// add up in float32 at one rank, so that a sum is narrowed once; in large groups at two levels.
// Two-level plans between hosts are named with what runs between the hosts.
std::string select_narrow_algorithm(Collective collective, int world_size, size_t hosts,
                                    const AlgorithmChoices& choices);
// Whether a choice of theirs can be kept to with a narrow wire format.
bool can_narrow(std::string_view algorithm);

}  // namespace pycomm
