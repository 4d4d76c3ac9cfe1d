// SPDX-License-Identifier: MIT
// Which ranks share a host, in the one order that all ranks agree on: what two-level plans are made
// from. Hosts may differ in size and hold any ranks. A value; any thread.
#pragma once

#include <cstddef>
#include <vector>

namespace pycomm {

using Hosts = std::vector<std::vector<int>>;  // hosts[i] lists the ranks of host i

struct HostLayout {
  Hosts hosts;  // ranks ascending within a host, hosts ascending by their first rank
  int world_size = 0;
  int rank = 0;   // whom the plan is for
  int host = 0;   // that rank's host
  int local = 0;  // that rank's place in its host

  const std::vector<int>& mates() const { return hosts[static_cast<size_t>(host)]; }
  int host_count() const { return static_cast<int>(hosts.size()); }
};

// Throws UsageError when `hosts` does not list every rank exactly once, or has no `rank`.
HostLayout make_host_layout(Hosts hosts, int rank);

// Rows of a grid that holds ranks 0..world_size-1 line by line, as wide as the largest divisor of
// world_size up to its square root: hosts for a two-level plan of a group that has none. A prime
// number of ranks is one row.
Hosts rows_of_grid(int world_size);

// Where `rank` stands in `ranks`; -1 when it does not.
int place_in(const std::vector<int>& ranks, int rank);

}  // namespace pycomm
