// SPDX-License-Identifier: MIT
#include "torch/plans.h"

#include <pybind11/stl.h>

#include <map>
#include <vector>

#include "base/error.h"
#include "engine/select.h"
#include "plan/algorithms.h"
#include "plan/check.h"
#include "plan/cost.h"
#include "plan/host_layout.h"

namespace py = pybind11;

namespace pycomm {
namespace {

using HostOf = std::vector<int>;  // by rank; empty where hosts do not matter

Hosts hosts_from(const HostOf& host_of, int world_size) {
  PYCOMM_USAGE(static_cast<int>(host_of.size()) == world_size, kHierarchical, " plans: got ",
               host_of.size(), " hosts, expected the host of each of ", world_size,
               " ranks, such as --hosts 0,0,1,1");
  std::map<int, std::vector<int>> ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    ranks[host_of[static_cast<size_t>(rank)]].push_back(rank);
  }
  Hosts hosts;
  for (auto& [number, members] : ranks) hosts.push_back(std::move(members));
  return hosts;
}

Plan plan_of(Collective collective, const std::string& algorithm, int world_size, int rank,
             int root, const HostOf& host_of) {
  if (algorithm != kHierarchical) return make_plan(collective, algorithm, world_size, rank, root);
  return make_hierarchical_plan(collective, hosts_from(host_of, world_size), rank, root);
}

PlanSet plans_of(Collective collective, const std::string& algorithm, int world_size, int root,
                 const HostOf& host_of) {
  if (algorithm != kHierarchical) return make_plans(collective, algorithm, world_size, root);
  PlanSet plans;
  for (int rank = 0; rank < world_size; ++rank) {
    plans.push_back(plan_of(collective, algorithm, world_size, rank, root, host_of));
  }
  return plans;
}

}  // namespace

Collective collective_of(const std::string& name) {
  std::string known;
  for (int code = 0; code < kCollectiveCount; ++code) {
    const auto one = static_cast<Collective>(code);
    if (name == name_of(one)) return one;
    if (!algorithms_for(one).empty()) known += str(" ", name_of(one));
  }
  throw UsageError("'" + name + "' is no collective; choose among:" + known);
}

void bind_plans(py::module_& m) {
  m.def(
      "algorithms_for",
      [](const std::string& collective) {
        std::vector<std::string> names;
        for (const auto name : algorithms_for(collective_of(collective))) names.emplace_back(name);
        return names;
      },
      py::arg("collective"));
  m.def(
      "has_hierarchical_plan",
      [](const std::string& collective) {
        return has_hierarchical_plan(collective_of(collective));
      },
      py::arg("collective"));
  m.def(
      "plan_text",
      [](const std::string& collective, const std::string& algorithm, int world_size, int rank,
         int root, const HostOf& hosts) {
        return to_string(
            plan_of(collective_of(collective), algorithm, world_size, rank, root, hosts));
      },
      py::arg("collective"), py::arg("algorithm"), py::arg("world_size"), py::arg("rank"),
      py::arg("root") = 0, py::arg("hosts") = HostOf{});
  m.def(
      "plan_check",
      [](const std::string& collective, const std::string& algorithm, int world_size, int root,
         const HostOf& hosts) {
        return check(plans_of(collective_of(collective), algorithm, world_size, root, hosts));
      },
      py::arg("collective"), py::arg("algorithm"), py::arg("world_size"), py::arg("root") = 0,
      py::arg("hosts") = HostOf{});
  m.def(
      "plan_cost",
      [](const std::string& collective, const std::string& algorithm, int world_size, size_t bytes,
         double alpha_s, double beta_s_per_byte, double gamma_s_per_byte, const HostOf& hosts) {
        const auto result =
            cost(plans_of(collective_of(collective), algorithm, world_size, 0, hosts), bytes,
                 {alpha_s, beta_s_per_byte, gamma_s_per_byte});
        py::dict out;
        out["steps"] = result.steps;
        out["bytes_sent_max"] = result.bytes_sent_max;
        out["bytes_reduced_max"] = result.bytes_reduced_max;
        out["seconds"] = result.seconds;
        return out;
      },
      py::arg("collective"), py::arg("algorithm"), py::arg("world_size"), py::arg("bytes"),
      py::arg("alpha_s"), py::arg("beta_s_per_byte"), py::arg("gamma_s_per_byte"),
      py::arg("hosts") = HostOf{});
}

}  // namespace pycomm
