// SPDX-License-Identifier: MIT
// The two-level all_gather and reduce_scatter of plan/hierarchy.h.
//
// On each host one rank is the proxy of a rank elsewhere: the one with the same place in its host,
// places counted round where hosts differ in size. All that a rank and another host have to tell
// each other goes through its proxy there, so every rank of a host has its share of the crossings.
//
//     host 0:   0 1 2        on host 1, 3 is the proxy of 0 and 2, and 4 of 1;
//     host 1:   3 4          on host 0, 0 is the proxy of 3, and 1 of 4
#include "plan/builder.h"
#include "plan/hierarchy.h"

namespace pycomm {
namespace {

// The proxy, on host `host`, of the `local`-th rank of another one.
int proxy_on(const HostLayout& layout, int host, int local) {
  const auto& ranks = layout.hosts[static_cast<size_t>(host)];
  return ranks[static_cast<size_t>(local) % ranks.size()];
}

// Ranks on other hosts for which `mate`, a rank of this host, is the proxy. The next host comes
// first, so that no host is everybody's first.
std::vector<int> represented_by(const HostLayout& layout, int mate) {
  std::vector<int> result;
  const Place hosts{layout.host_count(), layout.host};
  for (int d = 1; d < hosts.world_size; ++d) {
    const auto& ranks = layout.hosts[static_cast<size_t>(hosts.at(-d))];
    for (size_t local = 0; local < ranks.size(); ++local) {
      if (proxy_on(layout, layout.host, static_cast<int>(local)) == mate) {
        result.push_back(ranks[local]);
      }
    }
  }
  return result;
}

// This rank's proxies, one on each other host.
std::vector<int> proxies_of(const HostLayout& layout) {
  std::vector<int> result;
  const Place hosts{layout.host_count(), layout.host};
  for (int d = 1; d < hosts.world_size; ++d) {
    result.push_back(proxy_on(layout, hosts.at(d), layout.local));
  }
  return result;
}

// The other ranks of the host: `direction` 1 from the next one on, -1 from the one before.
std::vector<int> other_mates(const HostLayout& layout, int direction) {
  std::vector<int> result;
  const Place place{static_cast<int>(layout.mates().size()), layout.local};
  for (int d = 1; d < place.world_size; ++d) {
    result.push_back(layout.mates()[static_cast<size_t>(place.at(direction * d))]);
  }
  return result;
}

}  // namespace

// Each rank sends its block to its proxies and mates; a proxy hands what comes in to its mates. On
// a lane between mates the sender's own block goes first, for it waits for nothing.
Plan two_level_all_gather(const HostLayout& layout) {
  const int p = layout.world_size;
  PlanBuilder plan(Collective::all_gather, "hierarchical", {p, layout.rank}, p + 1);
  const auto represented = represented_by(layout, layout.rank);
  for (const int proxy : proxies_of(layout)) plan.send(proxy, work(p));
  for (const int mate : other_mates(layout, 1)) plan.send(mate, work(p));
  plan.copy(work(p), work(layout.rank));
  for (const int mate : other_mates(layout, -1)) plan.recv(mate, work(mate));
  for (const int far : represented) {
    plan.recv(far, work(far));
    for (const int mate : other_mates(layout, 1)) plan.send(mate, work(far));
  }
  for (const int mate : other_mates(layout, -1)) {
    for (const int far : represented_by(layout, mate)) plan.recv(mate, work(far));
  }
  return std::move(plan).build();
}

// The way back: a proxy adds up its host's blocks for a rank elsewhere, and sends it the sum, which
// is one operand of that rank's fold. On a lane between mates the blocks for other hosts go first:
// the own fold waits for all other hosts, and these may not wait for it.
Plan two_level_reduce_scatter(const HostLayout& layout) {
  const int p = layout.world_size;
  PlanBuilder plan(Collective::reduce_scatter, "hierarchical", {p, layout.rank}, p + 1);
  const auto mates = other_mates(layout, -1), proxies = proxies_of(layout);
  for (const int mate : other_mates(layout, 1)) {
    for (const int far : represented_by(layout, mate)) plan.send(mate, work(far));
    plan.send(mate, work(mate));
  }
  for (const int far : represented_by(layout, layout.rank)) {
    ChunkRef sum = work(far);
    if (!mates.empty()) {
      sum = plan.add_scratch(far);
      plan.copy(work(far), sum);
      for (const int mate : mates) plan.recv_reduce(mate, sum, false);
    }
    plan.send(far, sum);
  }
  plan.copy(work(layout.rank), work(p));
  std::vector<int> operands = mates;
  operands.insert(operands.end(), proxies.begin(), proxies.end());
  for (size_t i = 0; i < operands.size(); ++i) {
    plan.recv_reduce(operands[i], work(p), i + 1 == operands.size());
  }
  return std::move(plan).build();
}

}  // namespace pycomm
