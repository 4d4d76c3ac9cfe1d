// SPDX-License-Identifier: MIT
#include "plan/halving.h"

#include <bit>

namespace pycomm {
namespace {

// Who takes part in the rounds, and under which number.
//
//     p = 6, 2^k = 4:   rank     0 -> 1   2 -> 3   4   5
//                       number        0        1   2   3
struct Core {
  explicit Core(const Place& place)
      : size(static_cast<int>(std::bit_floor(static_cast<unsigned>(place.world_size)))),
        paired(2 * (place.world_size - size)) {}

  bool sits_out(int rank) const { return rank < paired && rank % 2 == 0; }
  bool has_guest(int rank) const { return rank < paired && rank % 2 == 1; }
  int number_of(int rank) const { return rank < paired ? rank / 2 : rank - paired / 2; }
  int rank_of(int number) const {
    return number < paired / 2 ? 2 * number + 1 : number + paired / 2;
  }

  int size;
  int paired;
};

// The guest's whole part: hand over every chunk, get every chunk back.
Plan guest_plan(PlanBuilder plan, const Place& place, int chunks) {
  for (int c = 0; c < chunks; ++c) plan.send(place.rank + 1, work(c));
  for (int c = 0; c < chunks; ++c) plan.recv(place.rank + 1, work(c));
  return std::move(plan).build();
}

}  // namespace

// Invariant: before the round of distance m, work[0] is the sum over m numbers, those that agree
// with mine in all bits but the lower ones; all m of them hold the same expression. Two scratch
// chunks in turn: the next round's receive need not wait for this round's addition.
Plan recursive_doubling_all_reduce(const Place& place) {
  PlanBuilder plan(Collective::all_reduce, "recursive_doubling", place, 1);
  const Core core(place);
  if (core.sits_out(place.rank)) return guest_plan(std::move(plan), place, 1);
  if (core.has_guest(place.rank)) plan.recv_reduce(place.rank - 1, work(0), false);
  const int number = core.number_of(place.rank);
  ChunkRef incoming[2];
  int round = 0;
  for (int distance = 1; distance < core.size; distance *= 2, ++round) {
    const int partner = core.rank_of(number ^ distance);
    ChunkRef& target = incoming[round % 2];
    if (round < 2) target = plan.add_scratch(0);
    plan.send(partner, work(0));
    plan.recv(partner, target);
    plan.reduce(target, work(0), 2 * distance == core.size);
  }
  if (core.has_guest(place.rank)) plan.send(place.rank - 1, work(0));
  return std::move(plan).build();
}

// Halving: before the round of distance m my chunks are [first, first + count), count = 2^k / m,
// each the sum over the m numbers that differ from mine only in the lower bits. The round gives
// half of them away and doubles m. Near partners come first, while the messages are large. Doubling
// undoes the rounds in reverse, with finished chunks.
//
//     2^k = 4      number 0      1      2      3
//     distance 1   keeps  0 1    2 3    0 1    2 3
//     distance 2          0      2      1      3
Plan halving_doubling_all_reduce(const Place& place) {
  const Core core(place);
  PlanBuilder plan(Collective::all_reduce, "halving_doubling", place, core.size);
  if (core.sits_out(place.rank)) return guest_plan(std::move(plan), place, core.size);
  for (int c = 0; core.has_guest(place.rank) && c < core.size; ++c) {
    plan.recv_reduce(place.rank - 1, work(c), false);
  }
  const int number = core.number_of(place.rank);
  int first = 0;
  int count = core.size;
  for (int distance = 1; distance < core.size; distance *= 2) {
    const int partner = core.rank_of(number ^ distance);
    count /= 2;
    const int kept = number & distance ? first + count : first;
    const int given = number & distance ? first : first + count;
    for (int c = 0; c < count; ++c) plan.send(partner, work(given + c));
    for (int c = 0; c < count; ++c) plan.recv_reduce(partner, work(kept + c), count == 1);
    first = kept;
  }
  for (int distance = core.size / 2; distance >= 1; distance /= 2) {
    const int partner = core.rank_of(number ^ distance);
    const int theirs = number & distance ? first - count : first + count;
    for (int c = 0; c < count; ++c) plan.send(partner, work(first + c));
    for (int c = 0; c < count; ++c) plan.recv(partner, work(theirs + c));
    if (number & distance) first = theirs;
    count *= 2;
  }
  for (int c = 0; core.has_guest(place.rank) && c < core.size; ++c) {
    plan.send(place.rank - 1, work(c));
  }
  return std::move(plan).build();
}

}  // namespace pycomm
