// SPDX-License-Identifier: MIT
#include "plan/direct.h"

namespace pycomm {
namespace {

void send_to_others(PlanBuilder& plan, const Place& place, ChunkRef chunk) {
  for (int d = 1; d < place.world_size; ++d) plan.send(place.at(d), chunk);
}

// One fold: nothing may stand between these steps.
void fold_from_others(PlanBuilder& plan, const Place& place, ChunkRef chunk) {
  for (int d = 1; d < place.world_size; ++d) {
    plan.recv_reduce(place.at(-d), chunk, d == place.world_size - 1);
  }
}

}  // namespace

Plan direct_reduce_scatter_in_place(const Place& place) {
  PlanBuilder plan(Collective::all_reduce, "direct", place, place.world_size);
  for (int d = 1; d < place.world_size; ++d) plan.send(place.at(d), work(place.at(d)));
  fold_from_others(plan, place, work(place.rank));
  return std::move(plan).build();
}

Plan direct_all_gather_in_place(const Place& place) {
  PlanBuilder plan(Collective::all_reduce, "direct", place, place.world_size);
  send_to_others(plan, place, work(place.rank));
  for (int d = 1; d < place.world_size; ++d) plan.recv(place.at(-d), work(place.at(-d)));
  return std::move(plan).build();
}

Plan direct_all_reduce(const Place& place) {
  return concatenate(direct_reduce_scatter_in_place(place), direct_all_gather_in_place(place));
}

// Folding into work[0] would wait for the sends of work[0], and those for the peers' folds: a
// deadlock without buffering. Hence the sum forms in scratch. The copy stands right before the fold
// so that the executor can make the two one pass.
Plan one_shot_all_reduce(const Place& place) {
  PlanBuilder plan(Collective::all_reduce, "one_shot", place, 1);
  if (place.world_size == 1) return std::move(plan).build();
  const ChunkRef sum = plan.add_scratch(0);
  send_to_others(plan, place, work(0));
  plan.copy(work(0), sum);
  fold_from_others(plan, place, sum);
  plan.copy(sum, work(0));
  return std::move(plan).build();
}

Plan direct_reduce_scatter(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::reduce_scatter, "direct", place, p + 1);
  for (int d = 1; d < p; ++d) plan.send(place.at(d), work(place.at(d)));
  plan.copy(work(place.rank), work(p));
  fold_from_others(plan, place, work(p));
  return std::move(plan).build();
}

Plan direct_all_gather(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::all_gather, "direct", place, p + 1);
  send_to_others(plan, place, work(p));
  plan.copy(work(p), work(place.rank));
  for (int d = 1; d < p; ++d) plan.recv(place.at(-d), work(place.at(-d)));
  return std::move(plan).build();
}

Plan direct_all_to_all(const Place& place) {
  const int p = place.world_size;
  PlanBuilder plan(Collective::all_to_all, "direct", place, 2 * p);
  for (int d = 1; d < p; ++d) plan.send(place.at(d), work(place.at(d)));
  plan.copy(work(place.rank), work(p + place.rank));
  for (int d = 1; d < p; ++d) plan.recv(place.at(-d), work(p + place.at(-d)));
  return std::move(plan).build();
}

}  // namespace pycomm
