// SPDX-License-Identifier: MIT
#include "plan/ring.h"

namespace pycomm {
namespace {

// Before round s rank r holds the sum of the s+1 ranks r-s .. r in chunk r-s-1, and passes it on.
// In the last round the chunk that arrives is r's own, and it arrives as the sum of all others.
//
//     round      0        1        2          p = 4; the chunk that rank 0 handles
//     sends      3        2        1
//     adds to    2        1        0  <- complete
Plan reduce_scatter_in_place(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::all_reduce, "ring", place, p);
  for (int s = 0; s < p - 1; ++s) {
    plan.send(place.at(1), work(place.at(-s - 1)));
    plan.recv_reduce(place.at(-1), work(place.at(-s - 2)), s == p - 2);
  }
  return std::move(plan).build();
}

// Before round s rank r holds the finished chunks r-s .. r, and passes on the one it got last.
Plan all_gather_in_place(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::all_reduce, "ring", place, p);
  for (int s = 0; s < p - 1; ++s) {
    plan.send(place.at(1), work(place.at(-s)));
    plan.recv(place.at(-1), work(place.at(-s - 1)));
  }
  return std::move(plan).build();
}

}  // namespace

Plan ring_all_reduce(const Place& place) {
  return concatenate(reduce_scatter_in_place(place), all_gather_in_place(place));
}

// The same rounds as in place. A partial sum may not be written over its input chunk, so each
// round adds into a scratch chunk of its own (blocks may differ in size); the last one is the
// output.
Plan ring_reduce_scatter(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::reduce_scatter, "ring", place, p + 1);
  // Invariant: `partial` holds the sum of ranks r-s .. r of chunk r-s-1.
  ChunkRef partial = work(place.at(-1));
  for (int s = 0; s < p - 1; ++s) {
    const bool last = s == p - 2;
    const int own = place.at(-s - 2);
    plan.send(place.at(1), partial);
    partial = last ? work(p) : plan.add_scratch(own);
    plan.copy(work(own), partial);
    plan.recv_reduce(place.at(-1), partial, last);
  }
  if (p == 1) plan.copy(work(0), work(1));
  return std::move(plan).build();
}

Plan ring_all_gather(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::all_gather, "ring", place, p + 1);
  // The first hop reads the input itself, so that it need not wait for the copy.
  if (p > 1) plan.send(place.at(1), work(p));
  plan.copy(work(p), work(place.rank));
  // Invariant: before round s blocks r-s .. r are here, and block r-s+1 has been passed on.
  for (int s = 0; s < p - 1; ++s) {
    if (s > 0) plan.send(place.at(1), work(place.at(-s)));
    plan.recv(place.at(-1), work(place.at(-s - 1)));
  }
  return std::move(plan).build();
}

}  // namespace pycomm
