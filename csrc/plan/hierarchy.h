// SPDX-License-Identifier: MIT
// Two-level plans: links between hosts are the slow ones, so they carry as little as the collective
// allows. plan/algorithms.h chooses among them. Pure functions; any thread.
#pragma once

#include <string_view>

#include "plan/host_layout.h"
#include "plan/plan.h"

namespace pycomm {

// Between hosts `inter`, an all_reduce algorithm; each byte crosses as often as `inter` needs with
// one rank a host.
Plan two_level_all_reduce(const HostLayout& layout, std::string_view inter);

// One tree: each host's leader hangs under another host's leader, everybody else under a rank of
// the same host. The root leads its own host, the first rank every other one. A tensor crosses to
// (or from) each host other than the root's once.
Plan two_level_broadcast(const HostLayout& layout, int root);
Plan two_level_reduce(const HostLayout& layout, int root);

// Each block crosses to (reduce_scatter: from) each other host once, over as many pairs of ranks as
// there are.
Plan two_level_all_gather(const HostLayout& layout);
Plan two_level_reduce_scatter(const HostLayout& layout);

// Only each host's first rank talks to other hosts. Also what ends the rooted collectives above: it
// does not depend on the root, so ranks that disagree about that meet in it.
Plan two_level_barrier(const HostLayout& layout);

}  // namespace pycomm
