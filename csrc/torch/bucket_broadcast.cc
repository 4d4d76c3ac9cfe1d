// SPDX-License-Identifier: MIT
#include "torch/bucket_broadcast.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/variable.h>

#include "base/limits.h"
#include "bucket/pack.h"

namespace pycomm {
namespace {

void broadcast_one(const c10::intrusive_ptr<c10d::Backend>& backend, at::Tensor tensor, int root) {
  c10d::BroadcastOptions options;
  options.rootRank = root;
  options.asyncOp = false;
  std::vector<at::Tensor> tensors{std::move(tensor)};
  if (const auto work = backend->broadcast(tensors, options)) work->wait();
}

}  // namespace

void broadcast_tensors(const c10::intrusive_ptr<c10d::Backend>& backend,
                       const std::vector<at::Tensor>& tensors, int root) {
  const bool is_root = backend->getRank() == root;
  std::vector<Piece> pieces;
  std::vector<size_t> bytes;
  for (const auto& tensor : tensors) {
    // What autograd has saved of it is no longer what it was.
    if (!is_root) torch::autograd::impl::bump_version(tensor);
    if (tensor.nbytes() >= kGradientAloneBytes || !tensor.is_contiguous()) {
      broadcast_one(backend, tensor.detach(), root);
      continue;
    }
    bytes.push_back(tensor.nbytes());
    pieces.push_back({static_cast<std::byte*>(tensor.data_ptr()), bytes.back()});
  }
  if (pieces.empty()) return;
  const auto offsets = offsets_of(bytes);
  auto flat = at::zeros({static_cast<int64_t>(offsets.back())}, at::kByte);
  auto* const memory = static_cast<std::byte*>(flat.data_ptr());
  if (is_root) pack(memory, pieces, offsets);
  broadcast_one(backend, flat, root);
  if (!is_root) unpack(memory, pieces, offsets);
}

}  // namespace pycomm
