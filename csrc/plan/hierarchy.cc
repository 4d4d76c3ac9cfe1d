// SPDX-License-Identifier: MIT
// Two-level all_reduce, declared in plan/algorithms.h: links between hosts are the slow ones, so
// they carry each byte once per host and not once per rank.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "plan/algorithms.h"
#include "plan/builder.h"
#include "plan/direct.h"
#include "plan/embed.h"

namespace pycomm {
namespace {

using Hosts = std::vector<std::vector<int>>;

struct Layout {
  Hosts hosts;  // ranks ascending within a host, hosts ascending by their first rank
  int world_size = 0;
  int host = 0;   // of the rank the plan is for
  int local = 0;  // that rank's place in its host
};

std::vector<int> numbers(int first, int count) {
  std::vector<int> result(static_cast<size_t>(count));
  std::iota(result.begin(), result.end(), first);
  return result;
}

// Sorting makes the plan independent of the order in which hosts were found.
Layout make_layout(Hosts hosts, int rank) {
  Layout layout;
  std::vector<int> all;
  for (auto& host : hosts) {
    PYCOMM_USAGE(!host.empty(), "hierarchical all_reduce: a host without ranks");
    std::sort(host.begin(), host.end());
    all.insert(all.end(), host.begin(), host.end());
  }
  std::sort(all.begin(), all.end());
  layout.world_size = static_cast<int>(all.size());
  PYCOMM_USAGE(all == numbers(0, layout.world_size),
               "hierarchical all_reduce: hosts must list every rank 0..", layout.world_size - 1,
               " exactly once");
  PYCOMM_USAGE(rank >= 0 && rank < layout.world_size, "hierarchical all_reduce: rank ", rank,
               " is not among the ", layout.world_size, " ranks of the hosts");
  std::sort(hosts.begin(), hosts.end());
  for (size_t h = 0; h < hosts.size(); ++h) {
    const auto found = std::find(hosts[h].begin(), hosts[h].end(), rank);
    if (found == hosts[h].end()) continue;
    layout.host = static_cast<int>(h);
    layout.local = static_cast<int>(found - hosts[h].begin());
  }
  layout.hosts = std::move(hosts);
  return layout;
}

// The `inter` all_reduce among the `local`-th ranks of all hosts.
Plan make_inter_plan(const Layout& layout, std::string_view inter) {
  return make_plan(Collective::all_reduce, inter, static_cast<int>(layout.hosts.size()),
                   layout.host);
}

// Each of a host's m ranks owns one m-th of the tensor, itself cut as `inter` wants it:
//
//     host 0:   0 1 2 3     reduce_scatter and all_gather along the rows, direct
//               | | | |
//     host 1:   4 5 6 7     all_reduce along the columns, `inter`
Plan make_equal(const Layout& layout, std::string_view inter) {
  const auto& mates = layout.hosts[static_cast<size_t>(layout.host)];
  const int per_host = static_cast<int>(mates.size());
  const Plan across = make_inter_plan(layout, inter);
  const int cut = across.work_chunks;

  Embedding row{layout.world_size, per_host * cut, mates, {}, layout.hosts.size() == 1};
  for (int j = 0; j < per_host; ++j) row.chunks.push_back(numbers(j * cut, cut));
  Embedding column{layout.world_size, per_host * cut, {}, {}, true};
  for (const auto& host : layout.hosts) {
    column.ranks.push_back(host[static_cast<size_t>(layout.local)]);
  }
  for (int i = 0; i < cut; ++i) column.chunks.push_back({layout.local * cut + i});

  const Place in_host{per_host, layout.local};
  Plan plan = embed(direct_reduce_scatter_in_place(in_host), row);
  plan = concatenate(std::move(plan), embed(across, column));
  return concatenate(std::move(plan), embed(direct_all_gather_in_place(in_host), row));
}

// With hosts of different sizes the first rank of each speaks for its host.
Plan make_unequal(const Layout& layout, std::string_view inter) {
  const auto& mates = layout.hosts[static_cast<size_t>(layout.host)];
  const Plan across = make_inter_plan(layout, inter);
  const int cut = across.work_chunks;

  const Embedding in_host{layout.world_size, cut, mates, {numbers(0, cut)}, false};
  Embedding leaders{layout.world_size, cut, {}, {}, true};
  for (const auto& host : layout.hosts) leaders.ranks.push_back(host[0]);
  for (int i = 0; i < cut; ++i) leaders.chunks.push_back({i});

  const Place place{static_cast<int>(mates.size()), layout.local};
  Plan plan = embed(direct_reduce_part(place), in_host);
  if (layout.local == 0) plan = concatenate(std::move(plan), embed(across, leaders));
  return concatenate(std::move(plan), embed(direct_broadcast_part(place), in_host));
}

}  // namespace

Plan make_hierarchical_plan(const Hosts& hosts, std::string_view inter, int rank) {
  const Layout layout = make_layout(hosts, rank);
  const bool equal = std::all_of(layout.hosts.begin(), layout.hosts.end(), [&](const auto& host) {
    return host.size() == layout.hosts[0].size();
  });
  Plan plan = equal ? make_equal(layout, inter) : make_unequal(layout, inter);
  plan.collective = Collective::all_reduce;
  plan.algorithm = str("hierarchical/", inter);
  plan.root = 0;
  return plan;
}

}  // namespace pycomm
