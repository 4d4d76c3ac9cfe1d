// SPDX-License-Identifier: MIT
// Proves that a set of plans implements its collective, before anything runs.
//
// All ranks are executed symbolically with rendezvous sends (no buffering at all), twice in a row
// to find what one call leaves behind for the next. Proved: every output chunk holds every rank's
// contribution exactly once; all ranks hold the same expression (hence the same bits); no deadlock;
// both ends agree on chunk and size; no chunk is rewritten while a peer may still read it; inputs
// are left as they were; `completes` is set exactly where a sum becomes whole. Limit: it proves
// plans, not the executor. Pure; any thread.
#pragma once

#include <string>

#include "plan/plan.h"

namespace pycomm {

// Empty when proved; otherwise what is wrong, with rank, step number and step.
std::string check(const PlanSet& plans);

}  // namespace pycomm
