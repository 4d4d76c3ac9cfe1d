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

}  // namespace pycomm
