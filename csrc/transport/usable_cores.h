// SPDX-License-Identifier: MIT
// Which cores a rank may run on, and whether the ranks of a host have a core each. What waiting may
// cost depends on it.
//
// Sets of cores are text in the kernel's form, "0-3,8", so that ranks can publish theirs. Values;
// any thread.
#pragma once

#include <string>
#include <vector>

namespace pycomm {

// Those the calling thread may run on now: its affinity.
std::string usable_cores();
// Whole cores' worth of time that the control group of this process is granted; 0: no limit.
int core_quota();

enum class Crowding {
  roomy,    // two cores for each rank: one for whoever waits and one for whoever computes
  even,     // one core for each rank
  crowded,  // fewer cores than ranks: whoever waits may hold the core that the awaited rank needs
};
// `cores` of each rank on this host; text that cannot be read counts as no core. `quota` as
// core_quota() gives it.
Crowding crowding_of(const std::vector<std::string>& cores, int quota);

}  // namespace pycomm
