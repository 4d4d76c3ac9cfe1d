// SPDX-License-Identifier: MIT
#include "plan/host_layout.h"

#include <algorithm>

#include "base/error.h"

namespace pycomm {

int place_in(const std::vector<int>& ranks, int rank) {
  const auto found = std::find(ranks.begin(), ranks.end(), rank);
  return found == ranks.end() ? -1 : static_cast<int>(found - ranks.begin());
}

// Sorting makes the plan independent of the order in which hosts were found.
HostLayout make_host_layout(Hosts hosts, int rank) {
  HostLayout layout;
  std::vector<int> all;
  for (auto& host : hosts) {
    PYCOMM_USAGE(!host.empty(), "two-level plan: a host without ranks");
    std::sort(host.begin(), host.end());
    all.insert(all.end(), host.begin(), host.end());
  }
  std::sort(all.begin(), all.end());
  layout.world_size = static_cast<int>(all.size());
  for (int r = 0; r < layout.world_size; ++r) {
    PYCOMM_USAGE(all[static_cast<size_t>(r)] == r, "two-level plan: hosts must list every rank 0..",
                 layout.world_size - 1, " exactly once");
  }
  PYCOMM_USAGE(rank >= 0 && rank < layout.world_size, "two-level plan: rank ", rank,
               " is not among the ", layout.world_size, " ranks of the hosts");
  std::sort(hosts.begin(), hosts.end());
  layout.rank = rank;
  layout.hosts = std::move(hosts);
  while (place_in(layout.mates(), rank) < 0) ++layout.host;
  layout.local = place_in(layout.mates(), rank);
  return layout;
}

Hosts rows_of_grid(int world_size) {
  int width = 1;
  for (int divisor = 2; divisor * divisor <= world_size; ++divisor) {
    if (world_size % divisor == 0) width = divisor;
  }
  if (width == 1) width = world_size;
  Hosts rows(static_cast<size_t>(world_size / width));
  for (int rank = 0; rank < world_size; ++rank) {
    rows[static_cast<size_t>(rank / width)].push_back(rank);
  }
  return rows;
}

}  // namespace pycomm
