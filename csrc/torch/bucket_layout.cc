// SPDX-License-Identifier: MIT
// Which gradients of a BucketReducer travel together, and where the small ones lie.
#include <ATen/Functions.h>

#include <algorithm>

#include "base/limits.h"
#include "bucket/assign.h"
#include "torch/arena_allocator.h"
#include "torch/bucket_reducer.h"
#include "torch/tensors.h"

namespace pycomm {

// Rank 0's order of readiness is everybody's from now on. Parameters that it has not used come
// last. Collective.
void BucketReducer::agree_on_order() {
  for (auto& gradient : gradients_) gradient.expected = std::max(1, gradient.brought);
  std::vector<bool> seen(gradients_.size(), false);
  for (const int index : readiness_) seen[static_cast<size_t>(index)] = true;
  for (size_t i = gradients_.size(); i-- > 0;) {
    if (!seen[i]) readiness_.push_back(static_cast<int>(i));
  }
  auto order = at::empty({static_cast<int64_t>(gradients_.size())}, at::kInt);
  std::copy(readiness_.begin(), readiness_.end(), order.data_ptr<int>());
  c10d::BroadcastOptions options;
  options.asyncOp = true;
  std::vector<at::Tensor> tensors{order};
  hosts_->broadcast(tensors, options)->wait();
  order_.assign(order.data_ptr<int>(), order.data_ptr<int>() + order.numel());
  lay_out();
  measured_ = true;
}

// After a backward. Ranks count backwards alike, and the slowest one decides. Collective when all
// sizes have been tried.
void BucketReducer::try_sizes() {
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begun_;
  if (trial_.settled() || !trial_.record(active_ ? taken.count() : 0)) return;
  if (trial_.complete()) {
    const auto seconds = trial_.seconds();
    auto told = at::empty({static_cast<int64_t>(seconds.size())}, at::kDouble);
    std::copy(seconds.begin(), seconds.end(), told.data_ptr<double>());
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    options.asyncOp = true;
    std::vector<at::Tensor> tensors{told};
    hosts_->allreduce(tensors, options)->wait();
    std::copy_n(told.data_ptr<double>(), seconds.size(), seconds.begin());
    trial_.decide();
  }
  lay_out();
}

void BucketReducer::lay_out() {
  std::vector<Parameter> parameters;
  for (const auto& gradient : gradients_) {
    const at::Tensor& one = gradient.parameter;
    parameters.push_back({one.nbytes(), dtype_of(Collective::all_reduce, one), -1});
  }
  buckets_.clear();
  // The first one is small, so that communication starts early.
  const size_t first_bytes = std::min(kFirstBucketBytes, trial_.size());
  for (auto& assigned : assign_buckets(parameters, order_, first_bytes, trial_.size())) {
    Bucket& bucket = buckets_.emplace_back();
    bucket.parameters = std::move(assigned.parameters);
    bucket.waiting = bucket.parameters.size();
    for (const int index : bucket.parameters) {
      gradients_[static_cast<size_t>(index)].bucket = buckets_.size() - 1;
    }
    put_small_ones(bucket);
  }
}

// On a device packing costs less than a launch, and what has been packed needs one all_reduce.
bool BucketReducer::travels_alone(const at::Tensor& parameter) const {
  return !stream_ && parameter.nbytes() >= kGradientAloneBytes;
}

// Each on a cache line of its own, laid out as its parameter.
void BucketReducer::put_small_ones(Bucket& bucket) {
  std::vector<int64_t> offsets;
  int64_t count = 0;
  bool any = false;
  for (const int index : bucket.parameters) {
    const at::Tensor& one = gradients_[static_cast<size_t>(index)].parameter;
    offsets.push_back(count);
    if (travels_alone(one)) continue;
    any = true;
    const auto line = static_cast<int64_t>(kCacheLineBytes / one.element_size());
    count += (one.numel() + line - 1) / line * line;
  }
  if (any) {
    const auto& like = gradients_[static_cast<size_t>(bucket.parameters[0])].parameter;
    const auto options = like.options().requires_grad(false);
    count = std::max<int64_t>(count, 1);
    bucket.flat = stream_ ? at::zeros({count}, options) : arena_tensor(count, options).zero_();
  }
  for (size_t i = 0; i < offsets.size(); ++i) {
    Gradient& gradient = gradients_[static_cast<size_t>(bucket.parameters[i])];
    const at::Tensor& one = gradient.parameter;
    gradient.offset = static_cast<size_t>(offsets[i] * one.element_size());
    if (travels_alone(one)) {
      gradient.view.reset();
    } else if (one.is_non_overlapping_and_dense()) {
      gradient.view = bucket.flat.as_strided(one.sizes(), one.strides(), offsets[i]);
    } else {
      gradient.view = bucket.flat.narrow(0, offsets[i], one.numel()).view(one.sizes());
    }
  }
  if (!stream_) return;
  std::vector<size_t> counts;
  for (const int index : bucket.parameters) {
    counts.push_back(static_cast<size_t>(gradients_[static_cast<size_t>(index)].parameter.numel()));
  }
  bucket.on_device = std::make_unique<DeviceBucket>(
      *stream_, bucket.flat, std::vector<size_t>(offsets.begin(), offsets.end()), std::move(counts),
      options_.narrow);
}

}  // namespace pycomm
