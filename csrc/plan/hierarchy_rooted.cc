// SPDX-License-Identifier: MIT
// The two-level trees of plan/hierarchy.h: broadcast, reduce and barrier.
#include "plan/builder.h"
#include "plan/hierarchy.h"
#include "plan/tree.h"

namespace pycomm {
namespace {

// The binomial tree over `ranks` whose root is `root`, as `rank` sees it.
TreeNode node_among(const std::vector<int>& ranks, int rank, int root) {
  const auto rank_of = [&](int place) { return ranks[static_cast<size_t>(place)]; };
  TreeNode node =
      binomial_node({static_cast<int>(ranks.size()), place_in(ranks, rank), place_in(ranks, root)});
  if (node.parent >= 0) node.parent = rank_of(node.parent);
  for (int& child : node.children) child = rank_of(child);
  return node;
}

// Host 0 holds ranks 0 1 2, host 1 ranks 3 4 5, the root is 4:
//
//            4        leaders: 4 and 0; the message between them is the one that crosses
//         /  |  \     children on other hosts come first: theirs is the longest way
//        0   3   5
//       / \          all three trees are binomial
//      2   1
TreeNode two_level_node(const HostLayout& layout, int root) {
  std::vector<int> leaders;
  for (const auto& host : layout.hosts) {
    leaders.push_back(place_in(host, root) >= 0 ? root : host[0]);
  }
  const int leader = leaders[static_cast<size_t>(layout.host)];
  TreeNode node = node_among(layout.mates(), layout.rank, leader);
  if (layout.rank != leader) return node;
  const TreeNode above = node_among(leaders, layout.rank, root);
  node.parent = above.parent;
  node.children.insert(node.children.begin(), above.children.begin(), above.children.end());
  return node;
}

Place place_of(const HostLayout& layout, int root) {
  return {layout.world_size, layout.rank, root};
}

}  // namespace

Plan two_level_broadcast(const HostLayout& layout, int root) {
  const TreeNode node = two_level_node(layout, root);
  return concatenate(tree_broadcast_part(place_of(layout, root), node, "hierarchical"),
                     two_level_barrier(layout));
}

Plan two_level_reduce(const HostLayout& layout, int root) {
  const TreeNode node = two_level_node(layout, root);
  return concatenate(tree_reduce_part(place_of(layout, root), node, "hierarchical"),
                     two_level_barrier(layout));
}

// Up each host's tree, a dissemination barrier among the leaders, and down again. `known` is
// written by everything that this rank has been told, as in plan/barrier.cc.
Plan two_level_barrier(const HostLayout& layout) {
  PlanBuilder plan(Collective::barrier, "hierarchical", place_of(layout, 0), 0);
  if (layout.world_size == 1) return std::move(plan).build();
  const TreeNode node = node_among(layout.mates(), layout.rank, layout.mates()[0]);
  const ChunkRef known = plan.add_scratch(kToken);
  const auto hear = [&](int peer) {
    const ChunkRef heard = plan.add_scratch(kToken);
    plan.recv(peer, heard);
    plan.copy(heard, known);
  };
  for (const int child : node.children) hear(child);
  if (node.parent >= 0) {
    plan.send(node.parent, known);
    hear(node.parent);
  } else {
    const Place leader{layout.host_count(), layout.host};
    const auto leader_of = [&](int host) { return layout.hosts[static_cast<size_t>(host)][0]; };
    for (int distance = 1; distance < leader.world_size; distance *= 2) {
      plan.send(leader_of(leader.at(distance)), known);
      hear(leader_of(leader.at(-distance)));
    }
  }
  for (const int child : node.children) plan.send(child, known);
  return std::move(plan).build();
}

}  // namespace pycomm
