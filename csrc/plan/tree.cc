// SPDX-License-Identifier: MIT
// The double binary tree of plan/tree.h; the rooted trees are in binomial_tree.cc.
#include "plan/tree.h"

namespace pycomm {
namespace {

// The binary tree over positions first .. first+count-1, count odd, in which every inner node has
// two children and positions run left to right. Leaves and inner nodes then alternate, leaves
// first:
//
//             3           count = 7
//         /       \       inner nodes:
//       1           5     1 3 5
//     /   \       /   \   leaves:
//    0     2     4     6  0 2 4 6
//
// Leaves are dealt evenly to both sides, which keeps the depth at log2 of their number, rounded up.
int left_size(int count) { return (count + 1) / 2 / 2 * 2 - 1; }

int root_of(int first, int count) { return count == 1 ? first : first + left_size(count); }

TreeNode in_order_node(int first, int count, int position) {
  TreeNode node;
  // Invariant: `position` lies in [first, first + count), whose root hangs under node.parent.
  while (position != root_of(first, count)) {
    const int middle = root_of(first, count);
    node.parent = middle;
    count = position < middle ? middle - first : first + count - middle - 1;
    if (position > middle) first = middle + 1;
  }
  if (count > 1) {
    const int right = first + count - position - 1;
    node.children = {root_of(first, position - first), root_of(position + 1, right)};
  }
  return node;
}

// An even number of positions leaves one over: position 0 goes on top, with one child.
//
//     p = 5      1          p = 6   0
//              /   \                |
//             0     3               2
//                 /   \           /   \          inner nodes:
//                2     4         1     4         1 3 when p is odd,
//                                    /   \       0 2 4 when it is even
//                                   3     5
TreeNode first_tree_node(int world_size, int position) {
  if (world_size % 2 == 1) return in_order_node(0, world_size, position);
  if (position == 0) {
    TreeNode top;
    top.children = {root_of(1, world_size - 1)};
    return top;
  }
  TreeNode node = in_order_node(1, world_size - 1, position);
  if (node.parent < 0) node.parent = 0;
  return node;
}

}  // namespace

// The second tree is the first one with its ranks mirrored (p even) or shifted by one (p odd):
// either makes an inner position out of a leaf's rank.
TreeNode double_binary_tree_node(int tree, int world_size, int rank) {
  if (tree == 0) return first_tree_node(world_size, rank);
  const bool mirror = world_size % 2 == 0;
  const auto rank_of = [&](int position) {
    return mirror ? world_size - 1 - position : (position + world_size - 1) % world_size;
  };
  const int position = mirror ? world_size - 1 - rank : (rank + 1) % world_size;
  TreeNode node = first_tree_node(world_size, position);
  if (node.parent >= 0) node.parent = rank_of(node.parent);
  for (int& child : node.children) child = rank_of(child);
  return node;
}

// Up both trees, then down both. Every rank lists the four passes in this order, so the two ends of
// a lane always agree on what comes next; passes of different trees touch different chunks and
// overlap.
Plan double_binary_tree_all_reduce(const Place& place) {
  PlanBuilder plan(Collective::all_reduce, "double_binary_tree", place, 2);
  if (place.world_size == 1) return std::move(plan).build();
  const TreeNode nodes[2] = {double_binary_tree_node(0, place.world_size, place.rank),
                             double_binary_tree_node(1, place.world_size, place.rank)};
  for (int tree = 0; tree < 2; ++tree) {
    const TreeNode& node = nodes[tree];
    for (size_t i = 0; i < node.children.size(); ++i) {
      const bool last = i + 1 == node.children.size();
      plan.recv_reduce(node.children[i], work(tree), node.parent < 0 && last);
    }
    if (node.parent >= 0) plan.send(node.parent, work(tree));
  }
  for (int tree = 0; tree < 2; ++tree) {
    const TreeNode& node = nodes[tree];
    if (node.parent >= 0) plan.recv(node.parent, work(tree));
    for (const int child : node.children) plan.send(child, work(tree));
  }
  return std::move(plan).build();
}

}  // namespace pycomm
