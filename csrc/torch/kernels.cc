// SPDX-License-Identifier: MIT
#include "torch/kernels.h"

#include <torch/csrc/utils/pybind.h>

#include "kernels/reduce.h"
#include "torch/tensors.h"

namespace py = pybind11;

namespace pycomm {
namespace {

ReduceOp op_of(const std::string& name) {
  for (int code = 0; code < kReduceOpCount; ++code) {
    const auto op = static_cast<ReduceOp>(code);
    if (name == name_of(op) && op != ReduceOp::premul_sum) return op;
  }
  throw UsageError("reduce: no op '" + name +
                   "'; choose sum, avg, product, min, max, band, bor, bxor");
}

void reduce_tensors(const at::Tensor& target, const std::vector<at::Tensor>& sources,
                    const std::string& op) {
  constexpr auto kCall = Collective::reduce;
  ReduceTask task;
  task.dtype = dtype_of(kCall, target);
  task.op = op_of(op);
  PYCOMM_USAGE(!sources.empty(), "reduce: no sources; give at least one tensor");
  PYCOMM_USAGE(supports(task.op, task.dtype), "reduce: ", op, " has no meaning on ",
               name_of(task.dtype), "; choose another op or dtype");
  std::vector<const void*> operands;
  const auto check = [&](const at::Tensor& tensor) {
    check_tensor(kCall, tensor);
    check_same_dtype(kCall, target, tensor);
    PYCOMM_USAGE(tensor.is_contiguous() && tensor.numel() == target.numel(),
                 "reduce: ", describe(tensor), ", expected a contiguous tensor like the target, ",
                 describe(target));
  };
  check(target);
  for (const auto& source : sources) {
    check(source);
    operands.push_back(source.const_data_ptr());
  }
  task.target = target.data_ptr();
  task.sources = operands.data();
  task.source_count = static_cast<int>(operands.size());
  task.count = static_cast<size_t>(target.numel());
  task.divisor = task.op == ReduceOp::avg ? task.source_count : 1;
  const py::gil_scoped_release adding;
  reduce(task);
}

}  // namespace

void bind_kernels(py::module_& m) {
  m.def("reduce", &reduce_tensors, py::arg("target"), py::arg("sources"), py::arg("op") = "sum");
}

}  // namespace pycomm
