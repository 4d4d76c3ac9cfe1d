// SPDX-License-Identifier: MIT
#include "torch/bucket_bindings.h"

#include <torch/csrc/utils/pybind.h>

#include "base/error.h"
#include "bucket/assign.h"
#include "torch/backend.h"
#include "torch/bucket_broadcast.h"
#include "torch/bucket_reducer.h"

namespace py = pybind11;

namespace pycomm {
namespace {

DType dtype_named(const std::string& name) {
  for (int code = 0; code < kDTypeCount; ++code) {
    if (name_of(static_cast<DType>(code)) == name) return static_cast<DType>(code);
  }
  throw UsageError("unknown dtype '" + name + "'");
}

}  // namespace

void bind_buckets(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<BucketReducer, std::shared_ptr<BucketReducer>>(m, "BucketReducer")
      .def(py::init([](const BucketReducer::BackendPtr& backend,
                       const BucketReducer::BackendPtr& hosts, std::vector<at::Tensor> parameters,
                       std::vector<std::string> names, std::vector<size_t> bucket_bytes,
                       bool average, std::optional<at::ScalarType> narrow) {
             auto reducer = std::make_shared<BucketReducer>(
                 backend, hosts, std::move(parameters),
                 ReducerOptions{std::move(names), std::move(bucket_bytes), average, narrow});
             reducer->attach();
             return reducer;
           }),
           py::arg("backend"), py::arg("hosts"), py::arg("parameters"), py::arg("names"),
           py::arg("bucket_bytes"), py::arg("average"), py::arg("narrow") = py::none())
      .def("recover", &BucketReducer::recover, release)
      .def("arm", &BucketReducer::arm, py::arg("outputs"), py::arg("reduce"), release)
      .def("shadow", &BucketReducer::shadow, release)
      .def("set_divisor", &BucketReducer::set_divisor, py::arg("divisor"), release)
      .def("buckets", &BucketReducer::buckets, release)
      .def("bucket_bytes", &BucketReducer::bucket_bytes, release);
  m.def("broadcast_tensors", &broadcast_tensors, py::arg("backend"), py::arg("tensors"),
        py::arg("root"), release);
  m.def(
      "fails_with", [](Backend& one, Backend& other) { one.fails_with(other); }, py::arg("one"),
      py::arg("other"));
  m.def(
      "assign_buckets",
      [](const std::vector<std::tuple<size_t, std::string, int>>& parameters,
         const std::vector<int>& order, size_t first_bytes, size_t bucket_bytes) {
        std::vector<Parameter> given;
        for (const auto& [bytes, dtype, device] : parameters) {
          given.push_back({bytes, dtype_named(dtype), device});
        }
        std::vector<std::vector<int>> buckets;
        for (auto& one : assign_buckets(given, order, first_bytes, bucket_bytes)) {
          buckets.push_back(std::move(one.parameters));
        }
        return buckets;
      },
      py::arg("parameters"), py::arg("order"), py::arg("first_bytes"), py::arg("bucket_bytes"));
}

}  // namespace pycomm
