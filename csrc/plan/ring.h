// SPDX-License-Identifier: MIT
// Ring algorithms: every rank only ever talks to its two neighbours, so p - 1 short hops replace
// one long one. Bandwidth-optimal (Patarasuk and Yuan 2009), latency grows with p. Pure functions;
// any thread.
#pragma once

#include "plan/builder.h"
#include "plan/plan.h"

namespace pycomm {

Plan ring_all_reduce(const Place& place);      // p chunks
Plan ring_reduce_scatter(const Place& place);  // scratch: p - 2 blocks, since inputs stay untouched
Plan ring_all_gather(const Place& place);

}  // namespace pycomm
