// SPDX-License-Identifier: MIT
// The dissemination barrier (Hensgen, Finkel, Manber 1988), and its use behind rooted collectives.
// Pure functions; any thread.
#pragma once

#include "plan/builder.h"
#include "plan/plan.h"

namespace pycomm {

Plan dissemination_barrier(const Place& place);

// A rooted collective leaves ranks that hear of nobody, the root of a broadcast for one. With the
// barrier behind it no rank finishes before it has, directly or through others, the signature
// of every rank, so a wrong root or shape anywhere fails everywhere in the same call. The tokens
// touch no data chunk: they travel while the data does.
Plan with_barrier(Plan plan);

}  // namespace pycomm
