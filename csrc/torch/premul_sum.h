// SPDX-License-Identifier: MIT
// torch's operation "multiply, then add" under one name: torch 2.13 renamed its parts. Any thread.
#pragma once

#include <torch/version.h>

#include <torch/csrc/distributed/c10d/Types.hpp>

namespace pycomm {

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
using PremulSupplement = c10d::PreMulSumSupplement;
#else
using PremulSupplement = c10d::NCCLPreMulSumSupplement;
#endif

inline c10d::ReduceOp premul_sum(double factor) {
  c10d::ReduceOp op;
  op.op_ = c10d::ReduceOp::PREMUL_SUM;
  op.supplement_ = c10::make_intrusive<PremulSupplement>(factor);
  return op;
}

}  // namespace pycomm
