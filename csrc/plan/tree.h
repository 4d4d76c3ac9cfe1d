// SPDX-License-Identifier: MIT
// Tree algorithms: 2 log2 p steps for a reduction and its way back, log2 p for one of them.
// Pure functions; any thread.
#pragma once

#include <string_view>
#include <vector>

#include "plan/builder.h"
#include "plan/plan.h"

namespace pycomm {

// One rank's neighbours in a tree.
struct TreeNode {
  int parent = -1;  // -1: the root
  std::vector<int> children;
};

// Tree 0 or 1 of the double binary tree of Sanders, Speck and Traeff (2009). No rank has children
// in both.
TreeNode double_binary_tree_node(int tree, int world_size, int rank);

Plan double_binary_tree_all_reduce(const Place& place);  // 2 chunks, one down each tree

// The binomial tree over the ranks counted from the root; a rank's largest subtree comes first.
TreeNode binomial_node(const Place& place);

// Down and up any tree whose root is place.root. Parts for composing, without a barrier.
Plan tree_broadcast_part(const Place& place, const TreeNode& node, std::string_view algorithm);
Plan tree_reduce_part(const Place& place, const TreeNode& node, std::string_view algorithm);

// Rooted, with a barrier behind. Binomial: a rank serves its largest subtree first.
Plan binomial_tree_broadcast(const Place& place);
Plan binomial_tree_reduce(const Place& place);

}  // namespace pycomm
