// SPDX-License-Identifier: MIT
// Direct algorithms: every pair that has something to exchange does so in one hop. Fewest latency
// steps; sums run in rank order 0..p-1. Partners are taken in turn starting from the next rank, so
// that no rank is everybody's first. Pure functions; any thread.
#pragma once

#include "plan/builder.h"
#include "plan/plan.h"

namespace pycomm {

Plan direct_all_reduce(const Place& place);    // p chunks: each rank adds up one and hands it out
Plan one_shot_all_reduce(const Place& place);  // 1 chunk: each rank adds up everything itself
Plan direct_reduce_scatter(const Place& place);
Plan direct_all_gather(const Place& place);
Plan direct_all_to_all(const Place& place);

// The two halves of direct_all_reduce, for composing: rank r owns chunk r in between.
Plan direct_reduce_scatter_in_place(const Place& place);
Plan direct_all_gather_in_place(const Place& place);

// Rooted. The first four end with a barrier; the last two are parts for composing and do not.
Plan direct_broadcast(const Place& place);
Plan direct_reduce(const Place& place);
Plan direct_gather(const Place& place);
Plan direct_scatter(const Place& place);
Plan direct_broadcast_part(const Place& place);
Plan direct_reduce_part(const Place& place);

// Van de Geijn's broadcast for large tensors: p chunks, dealt out and then exchanged.
Plan scatter_all_gather_broadcast(const Place& place);

}  // namespace pycomm
