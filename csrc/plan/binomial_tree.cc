// SPDX-License-Identifier: MIT
// The rooted trees of plan/tree.h.
#include "plan/barrier.h"
#include "plan/tree.h"

namespace pycomm {

// Ranks are counted from the root. The parent of v is v without its lowest set bit:
//
//          0        p = 8; children from left to right
//      /   |   \    in the order in which they are served
//     4    2    1
//    / \   |
//   6   5  3
//   |
//   7
TreeNode binomial_node(const Place& place) {
  TreeNode node;
  const int v = place.wrap(place.rank - place.root);
  const auto rank_of = [&](int number) { return place.wrap(number + place.root); };
  const int lowest = v & -v;
  if (v != 0) node.parent = rank_of(v - lowest);
  int bit = 1;
  while (2 * bit < place.world_size) bit *= 2;
  if (v != 0) bit = lowest / 2;
  for (; bit >= 1; bit /= 2) {
    if (v + bit < place.world_size) node.children.push_back(rank_of(v + bit));
  }
  return node;
}

Plan tree_broadcast_part(const Place& place, const TreeNode& node, std::string_view algorithm) {
  PlanBuilder plan(Collective::broadcast, algorithm, place, 1);
  if (node.parent >= 0) plan.recv(node.parent, work(0));
  for (const int child : node.children) plan.send(child, work(0));
  return std::move(plan).build();
}

// Only the root's tensor may change, so inner nodes add in scratch.
Plan tree_reduce_part(const Place& place, const TreeNode& node, std::string_view algorithm) {
  PlanBuilder plan(Collective::reduce, algorithm, place, 1);
  ChunkRef sum = work(0);
  if (!place.is_root() && !node.children.empty()) {
    sum = plan.add_scratch(0);
    plan.copy(work(0), sum);
  }
  for (size_t i = 0; i < node.children.size(); ++i) {
    const bool last = i + 1 == node.children.size();
    plan.recv_reduce(node.children[i], sum, place.is_root() && last);
  }
  if (node.parent >= 0) plan.send(node.parent, sum);
  return std::move(plan).build();
}

Plan binomial_tree_broadcast(const Place& place) {
  return with_barrier(tree_broadcast_part(place, binomial_node(place), "binomial_tree"));
}

Plan binomial_tree_reduce(const Place& place) {
  return with_barrier(tree_reduce_part(place, binomial_node(place), "binomial_tree"));
}

}  // namespace pycomm
