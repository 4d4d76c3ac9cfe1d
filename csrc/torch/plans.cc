// SPDX-License-Identifier: MIT
#include "torch/plans.h"

#include <pybind11/stl.h>

#include "base/error.h"
#include "plan/algorithms.h"
#include "plan/check.h"
#include "plan/cost.h"

namespace py = pybind11;

namespace pycomm {

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
      "plan_text",
      [](const std::string& collective, const std::string& algorithm, int world_size, int rank,
         int root) {
        return to_string(make_plan(collective_of(collective), algorithm, world_size, rank, root));
      },
      py::arg("collective"), py::arg("algorithm"), py::arg("world_size"), py::arg("rank"),
      py::arg("root") = 0);
  m.def(
      "plan_check",
      [](const std::string& collective, const std::string& algorithm, int world_size, int root) {
        return check(make_plans(collective_of(collective), algorithm, world_size, root));
      },
      py::arg("collective"), py::arg("algorithm"), py::arg("world_size"), py::arg("root") = 0);
  m.def(
      "plan_cost",
      [](const std::string& collective, const std::string& algorithm, int world_size, size_t bytes,
         double alpha_s, double beta_s_per_byte, double gamma_s_per_byte) {
        const auto result = cost(make_plans(collective_of(collective), algorithm, world_size),
                                 bytes, {alpha_s, beta_s_per_byte, gamma_s_per_byte});
        py::dict out;
        out["steps"] = result.steps;
        out["bytes_sent_max"] = result.bytes_sent_max;
        out["bytes_reduced_max"] = result.bytes_reduced_max;
        out["seconds"] = result.seconds;
        return out;
      },
      py::arg("collective"), py::arg("algorithm"), py::arg("world_size"), py::arg("bytes"),
      py::arg("alpha_s"), py::arg("beta_s_per_byte"), py::arg("gamma_s_per_byte"));
}

}  // namespace pycomm
