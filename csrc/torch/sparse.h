// SPDX-License-Identifier: MIT
// all_reduce of a sparse COO tensor: three all_gathers, of each rank's shape and number of entries,
// of their indices and of their values, and a local sum in rank order, the same on every rank.
//
// The sizes of the second and third are known only once the first has run, so these two fill in
// their memory right before they start, on whatever thread runs them. Caller's thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <vector>

#include "engine/operation.h"

namespace pycomm {

// Operations to be submitted in this order; `tensor` holds the sum when the last has finished.
// sum and avg only. Throws UsageError.
std::vector<std::shared_ptr<Operation>> sparse_all_reduce(const at::Tensor& tensor,
                                                          const c10d::ReduceOp& op,
                                                          std::chrono::milliseconds timeout,
                                                          int rank, int world_size);

}  // namespace pycomm
