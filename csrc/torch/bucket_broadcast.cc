// SPDX-License-Identifier: MIT
#include "torch/bucket_broadcast.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/variable.h>

#include <numeric>

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

bool travels_alone(const at::Tensor& tensor) {
  return tensor.nbytes() >= kGradientAloneBytes || !tensor.is_contiguous();
}

// Of a device, by torch's operators, which go over many tensors in one launch.
void broadcast_small_ones(const c10::intrusive_ptr<c10d::Backend>& backend,
                          const std::vector<at::Tensor>& tensors, int root) {
  const c10::InferenceMode guard;  // tensors made in it may only be written in it
  std::vector<at::Tensor> bytes;
  std::vector<int64_t> sizes;
  for (const auto& tensor : tensors) {
    bytes.push_back(tensor.detach().view({-1}).view(at::kByte));
    sizes.push_back(bytes.back().numel());
  }
  if (bytes.empty()) return;
  const bool is_root = backend->getRank() == root;
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  const auto flat = is_root ? at::cat(bytes) : at::empty({total}, bytes[0].options());
  broadcast_one(backend, flat, root);
  if (!is_root) at::_foreach_copy_(bytes, flat.split_with_sizes(sizes));
}

}  // namespace

void broadcast_tensors(const c10::intrusive_ptr<c10d::Backend>& backend,
                       const std::vector<at::Tensor>& tensors, int root) {
  const bool is_root = backend->getRank() == root;
  std::vector<Piece> pieces;
  std::vector<size_t> bytes;
  std::vector<at::Tensor> on_device;
  for (const auto& tensor : tensors) {
    // What autograd has saved of it is no longer what it was.
    if (!is_root) torch::autograd::impl::bump_version(tensor);
    if (travels_alone(tensor)) {
      broadcast_one(backend, tensor.detach(), root);
      continue;
    }
    if (!tensor.is_cpu()) {
      if (tensor.numel()) on_device.push_back(tensor);
      continue;
    }
    bytes.push_back(tensor.nbytes());
    pieces.push_back({static_cast<std::byte*>(tensor.data_ptr()), bytes.back()});
  }
  broadcast_small_ones(backend, on_device, root);
  if (pieces.empty()) return;
  const auto offsets = offsets_of(bytes);
  auto flat = at::zeros({static_cast<int64_t>(offsets.back())}, at::kByte);
  auto* const memory = static_cast<std::byte*>(flat.data_ptr());
  if (is_root) pack(memory, pieces, offsets);
  broadcast_one(backend, flat, root);
  if (!is_root) unpack(memory, pieces, offsets);
}

}  // namespace pycomm
