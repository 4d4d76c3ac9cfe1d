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

#include "engine/host_staging.h"
#include "engine/operation.h"
#include "torch/call_checks.h"

namespace pycomm {

// What take() makes of tensors on a device. What is not contiguous has been packed there, on the
// current stream; unpack() gives results back, on the stream that is current then.
struct DeviceTensors final : DeviceOperation {
  explicit DeviceTensors(c10::Device at) : where(at) {}
  const c10::Device where;
  struct Staged {
    at::Tensor tensor, temporary;
  };
  std::vector<Staged> packed, unpacked;
  void unpack() const;
};

// Collects what one call needs; take() gives the finished operation: a DeviceTensors where the
// tensors are on a device.
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
  using Staged = DeviceTensors::Staged;
  std::shared_ptr<Operation> take_from_device(int rank);
  void separate_on_device(int rank);
  void push_back(std::byte* data, size_t count);
  std::byte* memory_of(const at::Tensor& tensor, bool reads, bool writes);

  std::shared_ptr<Operation> operation_;
  std::vector<Staged> pack_, unpack_;
  std::vector<Region> scaled_;
  std::optional<double> factor_;
  bool first_ = true;
  c10::Device device_ = c10::kCPU;
  // Of the tensor at hand, on a device: what is done with it, and the one whose memory it is.
  DeviceOperation::Use use_;
  at::Tensor owner_;
  // By region.
  std::vector<DeviceOperation::Use> uses_;
  std::vector<at::Tensor> owners_;
};

// One dense, known-dtype tensor of the CPU or a device that is served, or UsageError naming the
// collective.
void check_tensor(Collective collective, const at::Tensor& tensor);
void check_same_dtype(Collective collective, const at::Tensor& a, const at::Tensor& b);
DType dtype_of(Collective collective, const at::Tensor& tensor);
// "float32[2, 3] on cpu"
std::string describe(const at::Tensor& tensor);

}  // namespace pycomm
