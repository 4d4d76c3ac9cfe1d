// SPDX-License-Identifier: MIT
// From tensors to operations: what is checked before anything is sent, and how a tensor's memory
// becomes regions.
//
// Every check throws UsageError that says what was given, what is expected and what to do. A tensor
// that is not contiguous is packed into a temporary right before the operation and unpacked right
// after, by the thread that runs it. Any thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <vector>

#include "engine/operation.h"
#include "torch/call_checks.h"

namespace pycomm {

// Collects what one call needs; take() gives the finished operation.
class OperationBuilder {
 public:
  OperationBuilder(Collective collective, std::chrono::milliseconds timeout);

  void set_root(int64_t root, int world_size);
  void set_peer(int peer, int tag);
  // Checks that the op exists for the dtype; for premul_sum remembers the factor.
  void set_op(const c10d::ReduceOp& op, const at::Tensor& example);

  // Appends a region. `reads`: the tensor's content goes in; `writes`: results come out.
  void add(const at::Tensor& tensor, bool reads, bool writes);
  // One region for each of `parts` equal parts of a tensor.
  void add_split(const at::Tensor& tensor, int parts, bool reads, bool writes);
  // One region for each entry of `sizes` (rows along dimension 0; empty: equal parts).
  void add_split(const at::Tensor& tensor, const std::vector<int64_t>& sizes, int parts, bool reads,
                 bool writes, const char* what);
  void add_empty(int count);

  // `rank` is this rank's: its own input and output block may be the same memory.
  std::shared_ptr<Operation> take(int rank);

 private:
  struct Staged {
    at::Tensor tensor, temporary;
  };
  std::byte* memory_of(const at::Tensor& tensor, bool reads, bool writes);

  std::shared_ptr<Operation> operation_;
  std::vector<Staged> pack_, unpack_;
  std::vector<Region> scaled_;
  std::optional<double> factor_;
  bool first_ = true;
};

// One CPU, dense, known-dtype tensor, or UsageError naming the collective.
void check_tensor(Collective collective, const at::Tensor& tensor);
void check_same_dtype(Collective collective, const at::Tensor& a, const at::Tensor& b);
DType dtype_of(Collective collective, const at::Tensor& tensor);
// "float32[2, 3] on cpu"
std::string describe(const at::Tensor& tensor);

}  // namespace pycomm
