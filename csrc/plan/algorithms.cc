// SPDX-License-Identifier: MIT
#include "plan/algorithms.h"

#include "base/error.h"
#include "plan/barrier.h"
#include "plan/builder.h"
#include "plan/direct.h"
#include "plan/halving.h"
#include "plan/hierarchy.h"
#include "plan/ring.h"
#include "plan/tree.h"

namespace pycomm {
namespace {

struct Algorithm {
  Collective collective;
  std::string_view name;
  Plan (*make)(const Place&);
};

// Within a collective the first entry is the default for small tensors on one host.
constexpr Algorithm kAlgorithms[] = {
    {Collective::all_reduce, "one_shot", one_shot_all_reduce},
    {Collective::all_reduce, "direct", direct_all_reduce},
    {Collective::all_reduce, "ring", ring_all_reduce},
    {Collective::all_reduce, "recursive_doubling", recursive_doubling_all_reduce},
    {Collective::all_reduce, "halving_doubling", halving_doubling_all_reduce},
    {Collective::all_reduce, "double_binary_tree", double_binary_tree_all_reduce},
    {Collective::broadcast, "direct", direct_broadcast},
    {Collective::broadcast, "binomial_tree", binomial_tree_broadcast},
    {Collective::broadcast, "scatter_all_gather", scatter_all_gather_broadcast},
    {Collective::reduce, "direct", direct_reduce},
    {Collective::reduce, "binomial_tree", binomial_tree_reduce},
    {Collective::all_gather, "direct", direct_all_gather},
    {Collective::all_gather, "ring", ring_all_gather},
    {Collective::gather, "direct", direct_gather},
    {Collective::scatter, "direct", direct_scatter},
    {Collective::reduce_scatter, "direct", direct_reduce_scatter},
    {Collective::reduce_scatter, "ring", ring_reduce_scatter},
    {Collective::all_to_all, "direct", direct_all_to_all},
    {Collective::barrier, "dissemination", dissemination_barrier},
};

std::string choices_for(Collective collective) {
  std::string text;
  for (const auto name : algorithms_for(collective)) {
    text += text.empty() ? "" : ", ";
    text += name;
  }
  return text.empty() ? "none" : text;
}

}  // namespace

std::vector<std::string_view> algorithms_for(Collective collective) {
  std::vector<std::string_view> names;
  for (const Algorithm& entry : kAlgorithms) {
    if (entry.collective == collective) names.push_back(entry.name);
  }
  return names;
}

Plan make_plan(Collective collective, std::string_view algorithm, int world_size, int rank,
               int root) {
  PYCOMM_USAGE(world_size >= 1, name_of(collective), ": world_size is ", world_size,
               ", expected at least 1");
  PYCOMM_USAGE(rank >= 0 && rank < world_size, name_of(collective), ": rank is ", rank,
               ", expected 0..", world_size - 1);
  PYCOMM_USAGE(root >= 0 && root < world_size, name_of(collective), ": root is ", root,
               ", expected 0..", world_size - 1);
  for (const Algorithm& entry : kAlgorithms) {
    if (entry.collective == collective && entry.name == algorithm) {
      return entry.make({world_size, rank, root});
    }
  }
  throw UsageError(str(name_of(collective), " has no algorithm \"", algorithm,
                       "\"; choose one of: ", choices_for(collective)));
}

PlanSet make_plans(Collective collective, std::string_view algorithm, int world_size, int root) {
  PYCOMM_USAGE(world_size >= 1, name_of(collective), ": world_size is ", world_size,
               ", expected at least 1");
  PlanSet plans;
  for (int rank = 0; rank < world_size; ++rank) {
    plans.push_back(make_plan(collective, algorithm, world_size, rank, root));
  }
  return plans;
}

bool has_hierarchical_plan(Collective collective) {
  switch (collective) {
    case Collective::all_reduce:
    case Collective::broadcast:
    case Collective::reduce:
    case Collective::all_gather:
    case Collective::reduce_scatter:
    case Collective::barrier:
      return true;
    default:
      return false;
  }
}

Plan make_hierarchical_plan(const Hosts& hosts, std::string_view inter, int rank) {
  return two_level_all_reduce(make_host_layout(hosts, rank), inter);
}

Plan make_hierarchical_plan(Collective collective, const Hosts& hosts, int rank, int root) {
  const HostLayout layout = make_host_layout(hosts, rank);
  PYCOMM_USAGE(root >= 0 && root < layout.world_size, name_of(collective), ": root is ", root,
               ", expected 0..", layout.world_size - 1);
  switch (collective) {
    case Collective::all_reduce:
      return two_level_all_reduce(layout, "ring");
    case Collective::broadcast:
      return two_level_broadcast(layout, root);
    case Collective::reduce:
      return two_level_reduce(layout, root);
    case Collective::all_gather:
      return two_level_all_gather(layout);
    case Collective::reduce_scatter:
      return two_level_reduce_scatter(layout);
    case Collective::barrier:
      return two_level_barrier(layout);
    default:
      throw UsageError(str(name_of(collective), " has no two-level plan"));
  }
}

Plan make_grid_plan(Collective collective, int world_size, int rank) {
  const HostLayout layout = make_host_layout(rows_of_grid(world_size), rank);
  PYCOMM_USAGE(collective == Collective::all_reduce || collective == Collective::reduce_scatter,
               name_of(collective), " has no plan over a grid");
  Plan plan = collective == Collective::all_reduce ? two_level_all_reduce(layout, "direct")
                                                   : two_level_reduce_scatter(layout);
  plan.algorithm = kGrid;
  return plan;
}

}  // namespace pycomm
