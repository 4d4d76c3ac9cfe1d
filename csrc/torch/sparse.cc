// SPDX-License-Identifier: MIT
#include "torch/sparse.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "torch/tensors.h"

namespace pycomm {
namespace {

// dtype, sparse dimensions, dimensions, entries, then the sizes.
constexpr int64_t kHeader = 4;
constexpr int64_t kDimsMax = 28;

struct SparseSum {
  at::Tensor tensor;           // the caller's
  at::Tensor indices, values;  // of this rank, coalesced
  at::Tensor header, headers;  // int64[kHeader + kDimsMax] of this rank, and of each
  std::vector<at::Tensor> all_indices, all_values;
  bool average = false;
  int rank = 0;
  int world_size = 1;

  at::Tensor own_header() const;
  void check_headers() const;
  int64_t entries(int peer) const { return headers[peer][3].item<int64_t>(); }
  std::string shape(int peer) const;
  void store_sum() const;
};

at::Tensor SparseSum::own_header() const {
  auto header = at::zeros({kHeader + kDimsMax}, at::kLong);
  auto* field = header.data_ptr<int64_t>();
  field[0] = static_cast<int64_t>(tensor.scalar_type());
  field[1] = tensor.sparse_dim();
  field[2] = tensor.dim();
  field[3] = indices.size(1);
  for (int64_t d = 0; d < tensor.dim(); ++d) field[kHeader + d] = tensor.size(d);
  return header;
}

std::string SparseSum::shape(int peer) const {
  const auto* field = headers[peer].data_ptr<int64_t>();
  std::string text = str(at::toString(static_cast<at::ScalarType>(field[0])), "[");
  for (int64_t d = 0; d < field[2]; ++d) text += str(d ? ", " : "", field[kHeader + d]);
  return text + str("] with ", field[1], " sparse dimensions");
}

void SparseSum::check_headers() const {
  const auto mine = headers[rank];
  for (int peer = 0; peer < world_size; ++peer) {
    auto theirs = headers[peer].clone();
    theirs[3] = mine[3];
    if (at::equal(theirs, mine)) continue;
    throw CommError(
        {FailureKind::mismatch,
         str("rank ", peer, " reduces a sparse ", shape(peer), ", rank ", rank, " a sparse ",
             shape(rank), "; give all ranks tensors of one shape and dtype"),
         {peer}});
  }
}

void SparseSum::store_sum() const {
  // The caller's tensor takes over the new lists of entries, which must be of its own mode.
  const c10::InferenceMode mode(tensor.is_inference());
  const at::NoGradGuard no_grad;
  auto sum = at::sparse_coo_tensor(at::cat(all_indices, 1), at::cat(all_values, 0), tensor.sizes(),
                                   tensor.options())
                 .coalesce();
  if (average) sum.values().div_(world_size);
  tensor.copy_(sum);
}

// One block for each rank and this rank's own, in memory that `blocks` names when it runs.
std::shared_ptr<Operation> late_all_gather(DType dtype, std::chrono::nanoseconds timeout,
                                           std::function<std::vector<at::Tensor>()> blocks,
                                           at::Tensor own) {
  auto operation = std::make_shared<Operation>();
  operation->collective = Collective::all_gather;
  operation->dtype = dtype;
  operation->timeout = timeout;
  // Raw: the engine runs it while the operation lives, and drops it afterwards.
  operation->before = [self = operation.get(), blocks = std::move(blocks), own = std::move(own)] {
    auto all = blocks();
    all.push_back(own);
    for (const auto& block : all) {
      self->work.push_back(
          {static_cast<std::byte*>(block.data_ptr()), static_cast<size_t>(block.numel())});
    }
  };
  return operation;
}

}  // namespace

std::vector<std::shared_ptr<Operation>> sparse_all_reduce(const at::Tensor& tensor,
                                                          const c10d::ReduceOp& op,
                                                          std::chrono::milliseconds timeout,
                                                          int rank, int world_size) {
  const bool average = op == c10d::ReduceOp::AVG;
  PYCOMM_USAGE(tensor.device().is_cpu(), "all_reduce: got a sparse tensor on ", tensor.device(),
               ", expected one on cpu; move it with .cpu()");
  // torch hands over view_as_real() of a complex tensor. Of a sparse one that is a tensor of its
  // own, and the sum would never reach the caller's.
  PYCOMM_USAGE(!tensor.is_view(),
               "all_reduce: got a view of a sparse tensor, or a sparse complex tensor, whose sum "
               "would be lost; reduce the tensor itself, a complex one as to_dense()");
  PYCOMM_USAGE(average || op == c10d::ReduceOp::SUM,
               "all_reduce: only sum and avg have a meaning on a sparse tensor, whose missing "
               "entries are zeros; call to_dense() first");
  PYCOMM_USAGE(
      !average || !at::isIntegralType(tensor.scalar_type(), true),
      "all_reduce: avg of a sparse integer tensor is not supported; call to_dense() first");
  PYCOMM_USAGE(tensor.dim() <= kDimsMax, "all_reduce: got a sparse tensor of ", tensor.dim(),
               " dimensions, expected at most ", kDimsMax);
  dtype_of(Collective::all_reduce, tensor);
  const auto sum = std::make_shared<SparseSum>();
  const auto own = tensor.detach().coalesce();
  sum->tensor = tensor;  // not detached: its list of entries will be another
  sum->indices = own.indices().contiguous();
  sum->values = own.values().contiguous();
  sum->average = average;
  sum->rank = rank;
  sum->world_size = world_size;
  sum->header = sum->own_header();
  sum->headers = at::empty({world_size, kHeader + kDimsMax}, at::kLong);

  OperationBuilder headers(Collective::all_gather, timeout);
  headers.add_split(sum->headers, world_size, false, true);
  headers.add(sum->header, true, false);
  std::vector<std::shared_ptr<Operation>> operations{headers.take(rank)};
  const auto limit = operations[0]->timeout;
  operations.push_back(late_all_gather(
      DType::int64, limit,
      [sum] {
        sum->check_headers();
        for (int peer = 0; peer < sum->world_size; ++peer) {
          const int64_t entries = sum->entries(peer);
          sum->all_indices.push_back(
              at::empty({sum->indices.size(0), entries}, sum->indices.options()));
          auto sizes = sum->values.sizes().vec();
          sizes[0] = entries;
          sum->all_values.push_back(at::empty(sizes, sum->values.options()));
        }
        return sum->all_indices;
      },
      sum->indices));
  operations.push_back(late_all_gather(
      dtype_of(Collective::all_reduce, tensor), limit, [sum] { return sum->all_values; },
      sum->values));
  operations.back()->after = [sum] { sum->store_sum(); };
  return operations;
}

}  // namespace pycomm
