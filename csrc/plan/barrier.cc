// SPDX-License-Identifier: MIT
#include "plan/barrier.h"

namespace pycomm {

// Invariant: before the round of distance d, `known` has been written by everything that ranks
// r-d+1 .. r told each other; the round adds ranks r-2d+1 .. r-d. The incoming token needs a chunk
// of its own: receiving into `known` would wait for the send of `known`, and so on all round the
// circle. The copy orders the next send behind every round so far, not only the last.
Plan dissemination_barrier(const Place& place) {
  PlanBuilder plan(Collective::barrier, "dissemination", place, 0);
  if (place.world_size == 1) return std::move(plan).build();
  const ChunkRef known = plan.add_scratch(kToken);
  for (int distance = 1; distance < place.world_size; distance *= 2) {
    const ChunkRef heard = plan.add_scratch(kToken);
    plan.send(place.at(distance), known);
    plan.recv(place.at(-distance), heard);
    if (2 * distance < place.world_size) plan.copy(heard, known);
  }
  return std::move(plan).build();
}

Plan with_barrier(Plan plan) {
  const Place place{plan.world_size, plan.rank, plan.root};
  return concatenate(std::move(plan), dissemination_barrier(place));
}

}  // namespace pycomm
