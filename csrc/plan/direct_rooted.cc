// SPDX-License-Identifier: MIT
// The rooted half of plan/direct.h.
#include "plan/barrier.h"
#include "plan/direct.h"

namespace pycomm {

Plan direct_broadcast_part(const Place& place) {
  PlanBuilder plan(Collective::broadcast, "direct", place, 1);
  if (place.is_root()) {
    for (int d = 1; d < place.world_size; ++d) plan.send(place.at(d), work(0));
  } else {
    plan.recv(place.root, work(0));
  }
  return std::move(plan).build();
}

Plan direct_reduce_part(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::reduce, "direct", place, 1);
  if (place.is_root()) {
    for (int d = 1; d < p; ++d) plan.recv_reduce(place.at(-d), work(0), d == p - 1);
  } else {
    plan.send(place.root, work(0));
  }
  return std::move(plan).build();
}

Plan direct_broadcast(const Place& place) { return with_barrier(direct_broadcast_part(place)); }
Plan direct_reduce(const Place& place) { return with_barrier(direct_reduce_part(place)); }

Plan direct_gather(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::gather, "direct", place, p + 1);
  if (place.is_root()) {
    plan.copy(work(p), work(place.rank));
    for (int d = 1; d < p; ++d) plan.recv(place.at(-d), work(place.at(-d)));
  } else {
    plan.send(place.root, work(p));
  }
  return with_barrier(std::move(plan).build());
}

Plan direct_scatter(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::scatter, "direct", place, p + 1);
  if (place.is_root()) {
    for (int d = 1; d < p; ++d) plan.send(place.at(d), work(place.at(d)));
    plan.copy(work(place.rank), work(p));
  } else {
    plan.recv(place.root, work(p));
  }
  return with_barrier(std::move(plan).build());
}

// The root deals chunk q to rank q and its own chunk to everybody; then each rank passes its
// chunk to all but the root, which has everything. No rank sends more than 2(p-1)/p of the tensor,
// where a direct broadcast makes the root send p-1 of them.
Plan scatter_all_gather_broadcast(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::broadcast, "scatter_all_gather", place, p);
  if (place.is_root()) {
    for (int d = 1; d < p; ++d) plan.send(place.at(d), work(place.at(d)));
    for (int d = 1; d < p; ++d) plan.send(place.at(d), work(place.rank));
    return with_barrier(std::move(plan).build());
  }
  plan.recv(place.root, work(place.rank));
  for (int d = 1; d < p; ++d) {
    if (place.at(d) != place.root) plan.send(place.at(d), work(place.rank));
  }
  for (int d = 1; d < p; ++d) plan.recv(place.at(-d), work(place.at(-d)));
  return with_barrier(std::move(plan).build());
}

}  // namespace pycomm
