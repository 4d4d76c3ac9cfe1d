// SPDX-License-Identifier: MIT
// The two-level all_reduce of plan/hierarchy.h.
#include "plan/hierarchy.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "plan/algorithms.h"
#include "plan/builder.h"
#include "plan/direct.h"
#include "plan/embed.h"

namespace pycomm {
namespace {

std::vector<int> numbers(int first, int count) {
  std::vector<int> result(static_cast<size_t>(count));
  std::iota(result.begin(), result.end(), first);
  return result;
}

// The `inter` all_reduce among the `local`-th ranks of all hosts.
Plan make_inter_plan(const HostLayout& layout, std::string_view inter) {
  if (inter == kGrid)
    return make_grid_plan(Collective::all_reduce, layout.host_count(), layout.host);
  return make_plan(Collective::all_reduce, inter, layout.host_count(), layout.host);
}

// Each of a host's m ranks owns one m-th of the tensor, itself cut as `inter` wants it:
//
//     host 0:   0 1 2 3     reduce_scatter and all_gather along the rows, direct
//               | | | |
//     host 1:   4 5 6 7     all_reduce along the columns, `inter`
Plan make_equal(const HostLayout& layout, std::string_view inter) {
  const auto& mates = layout.mates();
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
Plan make_unequal(const HostLayout& layout, std::string_view inter) {
  const auto& mates = layout.mates();
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

Plan two_level_all_reduce(const HostLayout& layout, std::string_view inter) {
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
