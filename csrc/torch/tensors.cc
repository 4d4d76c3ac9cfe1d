// SPDX-License-Identifier: MIT
#include "torch/tensors.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "kernels/reduce.h"
#include "torch/arena_allocator.h"
#include "torch/device_registry.h"
#include "torch/premul_sum.h"

namespace pycomm {
namespace {

std::optional<DType> known_dtype(at::ScalarType type) {
  switch (type) {
    case at::kByte:
      return DType::uint8;
    case at::kChar:
      return DType::int8;
    case at::kShort:
      return DType::int16;
    case at::kInt:
      return DType::int32;
    case at::kLong:
      return DType::int64;
    case at::kUInt16:
      return DType::uint16;
    case at::kUInt32:
      return DType::uint32;
    case at::kUInt64:
      return DType::uint64;
    case at::kBool:
      return DType::boolean;
    case at::kHalf:
      return DType::float16;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kFloat:
      return DType::float32;
    case at::kDouble:
      return DType::float64;
    case at::kComplexHalf:
      return DType::complex32;
    case at::kComplexFloat:
      return DType::complex64;
    case at::kComplexDouble:
      return DType::complex128;
    case at::kFloat8_e4m3fn:
      return DType::float8_e4m3fn;
    case at::kFloat8_e5m2:
      return DType::float8_e5m2;
    case at::kFloat8_e4m3fnuz:
      return DType::float8_e4m3fnuz;
    case at::kFloat8_e5m2fnuz:
      return DType::float8_e5m2fnuz;
    case at::kFloat8_e8m0fnu:
      return DType::float8_e8m0fnu;
    default:
      return std::nullopt;
  }
}

ReduceOp op_of(const c10d::ReduceOp& op) {
  switch (op.op_) {
    case c10d::ReduceOp::SUM:
      return ReduceOp::sum;
    case c10d::ReduceOp::AVG:
      return ReduceOp::avg;
    case c10d::ReduceOp::PRODUCT:
      return ReduceOp::product;
    case c10d::ReduceOp::MIN:
      return ReduceOp::min;
    case c10d::ReduceOp::MAX:
      return ReduceOp::max;
    case c10d::ReduceOp::BAND:
      return ReduceOp::band;
    case c10d::ReduceOp::BOR:
      return ReduceOp::bor;
    case c10d::ReduceOp::BXOR:
      return ReduceOp::bxor;
    case c10d::ReduceOp::PREMUL_SUM:
      return ReduceOp::premul_sum;
    default:
      throw UsageError("unknown reduce op");
  }
}

double premul_factor(const c10d::ReduceOp& op) {
  const auto* supplement = dynamic_cast<const PremulSupplement*>(op.supplement_.get());
  PYCOMM_USAGE(supplement,
               "premul_sum was given without its factor; make the op with "
               "torch.distributed._make_nccl_premul_sum(factor)");
  return supplement->tensor_factor.defined() ? supplement->tensor_factor.item<double>()
                                             : supplement->double_factor;
}

}  // namespace

std::string describe(const at::Tensor& tensor) {
  std::ostringstream out;
  const auto known = known_dtype(tensor.scalar_type());
  out << (known ? std::string(name_of(*known)) : std::string(tensor.dtype().name())) << '[';
  for (int64_t d = 0; d < tensor.dim(); ++d) out << (d ? ", " : "") << tensor.size(d);
  out << "] on " << tensor.device();
  return out.str();
}

void check_tensor(Collective collective, const at::Tensor& tensor) {
  PYCOMM_USAGE(tensor.defined(), name_of(collective),
               ": got an undefined tensor, expected a dense CPU tensor");
  PYCOMM_USAGE(tensor.layout() == at::kStrided, name_of(collective), ": got a tensor of layout ",
               tensor.layout(), ", expected a dense one; call to_dense() first");
  PYCOMM_USAGE(tensor.device().is_cpu() || served_device(tensor.device()), name_of(collective),
               ": got ", describe(tensor), ", expected a tensor on cpu",
               serves(c10::DeviceType::CUDA) ? " or cuda" : "",
               "; move it with .cpu(), or give this group another "
               "backend for that device, such as init_process_group(\"cpu:pycomm,cuda:nccl\")");
  dtype_of(collective, tensor);
}

void check_same_dtype(Collective collective, const at::Tensor& a, const at::Tensor& b) {
  PYCOMM_USAGE(a.scalar_type() == b.scalar_type(), name_of(collective), ": got ", describe(a),
               " and ", describe(b),
               ", expected one dtype (invalid tensor type); convert one of them");
}

DType dtype_of(Collective collective, const at::Tensor& tensor) {
  const auto dtype = known_dtype(tensor.scalar_type());
  PYCOMM_USAGE(
      dtype, name_of(collective), ": got a tensor of dtype ", tensor.dtype().name(),
      ", expected a boolean, integer, floating or complex dtype; send its int_repr() or a view "
      "as uint8 instead");
  return *dtype;
}

OperationBuilder::OperationBuilder(Collective collective, std::chrono::milliseconds timeout)
    : operation_(std::make_shared<Operation>()) {
  operation_->collective = collective;
  if (timeout.count() >= 0 && timeout != c10d::kUnsetTimeout) operation_->timeout = timeout;
}

void OperationBuilder::set_root(int64_t root, int world_size) {
  check_root(operation_->collective, root, world_size);
  operation_->root = static_cast<int>(root);
}

void OperationBuilder::set_peer(int peer, int tag) {
  operation_->peer = peer;
  operation_->root = tag;
}

void OperationBuilder::set_op(const c10d::ReduceOp& op, const at::Tensor& example) {
  const auto wanted = op_of(op);
  const auto dtype = dtype_of(operation_->collective, example);
  check_op(operation_->collective, wanted, dtype);
  operation_->op = wanted;
  if (wanted == ReduceOp::premul_sum) {
    factor_ = premul_factor(op);
    operation_->op = ReduceOp::sum;
    operation_->wire = Wire::fp32;  // narrow formats are for what the caller calls a sum
  }
}

std::byte* OperationBuilder::memory_of(const at::Tensor& tensor, bool reads, bool writes) {
  const auto dtype = dtype_of(operation_->collective, tensor);
  if (first_) {
    operation_->dtype = dtype;
    device_ = tensor.device();
  }
  first_ = false;
  PYCOMM_USAGE(tensor.device() == device_, name_of(operation_->collective), ": got tensors on ",
               device_, " and on ", tensor.device(), ", expected one device; move one of them");
  use_ = {reads, writes};
  const bool plain = tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg();
  // Scaling must not touch an input that the caller keeps.
  const bool keep = factor_ && reads && !writes && device_.is_cpu();
  at::Tensor memory = tensor;
  PYCOMM_USAGE(!writes || at::has_internal_overlap(tensor) != at::MemOverlap::Yes,
               name_of(operation_->collective), ": got an output ", describe(tensor),
               " with strides ", tensor.strides(),
               ", several of whose elements share memory, expected one place for "
               "each; call clone() or contiguous() on an expanded tensor first");
  if (!plain || keep) {
    const auto bare = tensor.detach();
    // What peers can reach stays within their reach.
    memory = device_.is_cpu() && in_arena(tensor)
                 ? arena_tensor(tensor.numel(), tensor.options()).view(tensor.sizes())
                 : at::empty(tensor.sizes(),
                             tensor.options().memory_format(at::MemoryFormat::Contiguous));
    if (reads) pack_.push_back({bare, memory});
    if (writes) unpack_.push_back({bare, memory});
  }
  auto* data = static_cast<std::byte*>(memory.data_ptr());
  if (factor_ && reads && device_.is_cpu()) {
    scaled_.push_back({data, static_cast<size_t>(tensor.numel())});
  }
  if (!device_.is_cpu()) owner_ = std::move(memory);
  return data;
}

void OperationBuilder::push_back(std::byte* data, size_t count) {
  operation_->work.push_back({data, count});
  if (device_.is_cpu()) return;
  uses_.push_back(use_);
  owners_.push_back(owner_);
}

void OperationBuilder::add(const at::Tensor& tensor, bool reads, bool writes) {
  auto* data = memory_of(tensor, reads, writes);
  push_back(data, static_cast<size_t>(tensor.numel()));
}

void OperationBuilder::add_split(const at::Tensor& tensor, int parts, bool reads, bool writes) {
  auto* data = memory_of(tensor, reads, writes);
  const auto each = static_cast<size_t>(tensor.numel() / parts);
  for (int i = 0; i < parts; ++i) {
    const size_t begin = each * static_cast<size_t>(i) * size_of(operation_->dtype);
    push_back(data + begin, each);
  }
}

void OperationBuilder::add_split(const at::Tensor& tensor, const std::vector<int64_t>& sizes,
                                 int parts, bool reads, bool writes, const char* what) {
  const auto name = name_of(operation_->collective);
  const int64_t rows = tensor.dim() ? tensor.size(0) : 0;
  if (sizes.empty()) {
    PYCOMM_USAGE(rows % parts == 0, name, ": the ", what, " ", describe(tensor), " has ", rows,
                 " rows, expected a multiple of the world size ", parts,
                 "; pad it or give split sizes (tensor's dim 0 does not divide equally)");
    return add_split(tensor, parts, reads, writes);
  }
  PYCOMM_USAGE(static_cast<int>(sizes.size()) == parts, name, ": got ", sizes.size(),
               " split sizes for the ", what, ", expected one for each of ", parts,
               " ranks; give one row count for each rank (invalid tensor size)");
  int64_t total = 0;
  for (const auto size : sizes) {
    PYCOMM_USAGE(size >= 0, name, ": got a negative split size ", size, " for the ", what,
                 ", expected 0 or more; give one row count for each rank (invalid tensor size)");
    total += size;
  }
  PYCOMM_USAGE(
      total == rows, name, ": the split sizes of the ", what, " sum to ", total, ", expected its ",
      rows, " rows; give one row count for each rank (split sizes doesn't match total dim 0 size)");
  auto* data = memory_of(tensor, reads, writes);
  const auto row = rows ? static_cast<size_t>(tensor.numel() / rows) : 0;
  for (const auto size : sizes) {
    const size_t count = static_cast<size_t>(size) * row;
    push_back(data, count);
    data += count * size_of(operation_->dtype);
  }
}

void OperationBuilder::add_empty(int count) {
  operation_->work.add_empty(static_cast<size_t>(count));
  uses_.resize(static_cast<size_t>(count));
  owners_.resize(static_cast<size_t>(count));
}

// An input that lies where results are written goes by a copy of the whole tensor, which is made
// with the packing of others. Through the host it would not have to, but what this rank alone knows
// must not choose the way.
void OperationBuilder::separate_on_device(int rank) {
  for (const size_t i : overlapping_inputs(*operation_, rank)) {
    const at::Tensor& from = owners_[i];
    auto known = std::find_if(pack_.begin(), pack_.end(),
                              [&](const Staged& one) { return one.tensor.is_same(from); });
    if (known == pack_.end()) {
      known = pack_.insert(pack_.end(), {from, at::empty(from.sizes(), from.options())});
    }
    Region& region = operation_->work[i];
    const auto offset = region.data - static_cast<const std::byte*>(from.data_ptr());
    region.data = static_cast<std::byte*>(known->temporary.data_ptr()) + offset;
  }
}

std::shared_ptr<Operation> OperationBuilder::take_from_device(int rank) {
  separate_on_device(rank);
  auto made = std::make_shared<DeviceTensors>(device_);
  made->collective = operation_->collective;
  made->op = operation_->op;
  made->dtype = operation_->dtype;
  made->root = operation_->root;
  made->peer = operation_->peer;
  made->wire = operation_->wire;
  made->timeout = operation_->timeout;
  made->work = operation_->work;
  made->uses = std::move(uses_);
  made->factor = factor_;
  const c10::InferenceMode guard;
  for (const auto& one : pack_) one.temporary.copy_(one.tensor);
  made->packed = std::move(pack_);
  made->unpacked = std::move(unpack_);
  return made;
}

void DeviceTensors::unpack() const {
  const c10::InferenceMode guard;
  for (const auto& one : unpacked) one.tensor.copy_(one.temporary);
}

std::shared_ptr<Operation> OperationBuilder::take(int rank) {
  if (!device_.is_cpu()) return take_from_device(rank);
  auto moved = separate_overlaps(*operation_, rank);
  if (!pack_.empty() || !scaled_.empty() || !moved.empty()) {
    operation_->before = [pack = std::move(pack_), scaled = std::move(scaled_), factor = factor_,
                          moved = std::make_shared<const std::vector<MovedApart>>(std::move(moved)),
                          dtype = operation_->dtype] {
      // Tensors made in inference mode may only be written in it.
      const c10::InferenceMode guard;
      for (const auto& one : pack) one.temporary.copy_(one.tensor);
      for (const auto& one : scaled) scale(dtype, one.data, one.data, one.count, *factor);
      for (const auto& one : *moved) std::memcpy(one.apart.get(), one.from, one.bytes);
    };
  }
  if (!unpack_.empty()) {
    operation_->after = [unpack = std::move(unpack_)] {
      // Tensors made in inference mode may only be written in it.
      const c10::InferenceMode guard;
      for (const auto& one : unpack) one.tensor.copy_(one.temporary);
    };
  }
  return std::move(operation_);
}

}  // namespace pycomm
