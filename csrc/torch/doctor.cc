// SPDX-License-Identifier: MIT
#include "torch/doctor.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "transport/interface.h"

namespace py = pybind11;

namespace pycomm {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

void bind_doctor(py::module_& m) {
  m.def(
      "choose_interface",
      [](const std::string& wanted, const std::string& store_host) {
        const auto chosen = choose_interface(wanted, store_host);
        return std::pair(chosen.name, chosen.ip);
      },
      py::arg("wanted"), py::arg("store_host"), py::call_guard<py::gil_scoped_release>());
  m.def("compiler", &compiler);
}

}  // namespace pycomm
