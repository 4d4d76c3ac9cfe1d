// SPDX-License-Identifier: MIT
// What a BucketReducer sends, and what becomes of the answers. All under its mutex.
#include <ATen/Functions.h>
#include <ATen/record_function.h>
#include <c10/core/StreamGuard.h>

#include <thread>
#include <utility>

#include "base/deadline.h"
#include "base/error.h"
#include "base/limits.h"
#include "bucket/pack.h"
#include "torch/bucket_reducer.h"
#include "torch/premul_sum.h"
#include "torch/tensors.h"

namespace pycomm {
namespace {

using Tensors = std::vector<at::Tensor>;

// Two tensors of one shape whose elements lie in the same order, without gaps, as the same bytes.
bool alike(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.is_conj() != b.is_conj() ||
      a.is_neg() != b.is_neg()) {
    return false;
  }
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return a.is_non_overlapping_and_dense();
}

bool same_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.data_ptr() == b.data_ptr() && alike(a, b);
}

// The memory of a tensor without gaps, in the order in which it lies.
at::Tensor as_it_lies(const at::Tensor& tensor) {
  return tensor.detach().as_strided({tensor.numel()}, {1});
}

}  // namespace

void BucketReducer::divide_by(int divisor) {
  if (divisor == 0 && options_.average) {
    factor_.reset();
    op_ = c10d::ReduceOp::AVG;
  } else {
    factor_ = 1.0 / (divisor ? divisor : backend_->getSize());
    op_ = premul_sum(*factor_);
  }
}

c10::intrusive_ptr<c10d::Work> BucketReducer::reduce(Tensors tensors, const c10d::ReduceOp& op) {
  c10d::AllreduceCoalescedOptions options;
  options.reduceOp = op;
  options.asyncOp = true;
  return backend_->allreduce_coalesced(tensors, options);
}

// One that could not go out is still to go.
void BucketReducer::launch_next(Part part) {
  launch(buckets_[next_], part);
  ++next_;
}

void BucketReducer::launch(Bucket& bucket, Part part) {
  if (stream_) return launch_on_device(bucket, part);
  const bool own = part == Part::own;
  Tensors tensors;
  if (bucket.flat.defined()) {
    if (own) pack_small_ones(bucket);
    tensors.push_back(own ? bucket.flat : at::zeros_like(bucket.flat));
  }
  const size_t small = tensors.size();
  for (const int index : bucket.parameters) {
    Gradient& gradient = gradients_[static_cast<size_t>(index)];
    if (gradient.view.defined()) continue;
    tensors.push_back(
        as_it_lies(own ? contribution_of(gradient) : at::zeros_like(gradient.parameter)));
  }
  if (small && factor_) {  // packing has multiplied them already
    bucket.small = reduce({tensors[0]}, c10d::ReduceOp::SUM);
    tensors.erase(tensors.begin());
  }
  if (tensors.empty()) {
    bucket.work = std::move(bucket.small);
  } else {
    bucket.work = reduce(std::move(tensors), op_);
  }
}

// Behind the streams of its gradients, by the stream of buckets, as one tensor.
void BucketReducer::launch_on_device(Bucket& bucket, Part part) {
  DeviceBucket& there = *bucket.on_device;
  at::Tensor sent = there.sent();
  there.arrives_on(stream_->current());
  const c10::StreamGuard guard(stream_->own());
  {
    RECORD_FUNCTION("pycomm:pack_bucket", std::vector<c10::IValue>());
    there.order();
    if (part == Part::own) {
      pack_on_device(bucket);
    } else {
      sent = at::zeros_like(sent);
    }
  }
  bucket.work = reduce({sent}, factor_ ? c10d::ReduceOp(c10d::ReduceOp::SUM) : op_);
}

// As pack_small_ones(), in one launch. What the gradients were until now is still read.
void BucketReducer::pack_on_device(Bucket& bucket) {
  std::vector<void*> from;
  from.reserve(bucket.parameters.size());
  for (const int index : bucket.parameters) {
    Gradient& gradient = gradients_[static_cast<size_t>(index)];
    at::Tensor& mine = gradient.parameter.mutable_grad();
    from.push_back(gradient.view.data_ptr());
    if (!has_own(gradient)) {
      substitute_for(gradient);
    } else if (alike(mine, gradient.view)) {
      from.back() = mine.data_ptr();
    } else {
      gradient.view.copy_(mine.detach());
    }
  }
  bucket.on_device->pack(from, factor_.value_or(1));
  for (const int index : bucket.parameters) {
    Gradient& gradient = gradients_[static_cast<size_t>(index)];
    if (gradient.substitute.defined()) continue;
    at::Tensor& mine = gradient.parameter.mutable_grad();
    if (same_memory(mine, gradient.view)) continue;
    bucket.on_device->keep(std::exchange(mine, gradient.view));
  }
}

void BucketReducer::wait(Bucket& bucket) {
  if (bucket.small) bucket.small->wait();
  bucket.work->wait();
  if (bucket.on_device) bucket.on_device->unpack();
}

// Of a device the current stream waits, behind the stream of buckets, and the host goes on.
void BucketReducer::wait_for_buckets() {
  if (!stream_) {
    for (auto& bucket : buckets_) wait(bucket);
    return;
  }
  const auto taker = stream_->current();
  {
    const c10::StreamGuard guard(stream_->own());
    for (auto& bucket : buckets_) wait(bucket);
  }
  stream_->order(taker, stream_->own());
  for (auto& bucket : buckets_) bucket.on_device->let_go(taker);
}

// Where the buckets' group has failed that is the reason, whatever has become of the other, which
// hears of it a moment earlier.
void BucketReducer::wait_for_hosts(const c10::intrusive_ptr<c10d::Work>& telling) {
  try {
    telling->wait();
  } catch (const std::exception&) {
    const auto patience = Deadline::after(kBackwardEndPatience);
    while (stream_ && !patience.expired()) {
      wait_for_buckets();
      std::this_thread::sleep_for(kAttendNap);
    }
    throw;
  }
}

bool BucketReducer::has_own(Gradient& gradient) const {
  const at::Tensor& mine = gradient.parameter.mutable_grad();
  if (!gradient.used || !mine.defined()) return false;
  PYCOMM_USAGE(mine.layout() == at::kStrided, "DataParallel: got a gradient of layout ",
               mine.layout(), ", expected a dense one; make the module with sparse=False");
  return true;
}

// Into the flat memory, in one pass that multiplies where this rank does; from then on param.grad
// is there.
void BucketReducer::pack_small_ones(Bucket& bucket) {
  std::vector<Piece> pieces;
  std::vector<size_t> offsets;
  auto* const flat = static_cast<std::byte*>(bucket.flat.data_ptr());
  for (const int index : bucket.parameters) {
    Gradient& gradient = gradients_[static_cast<size_t>(index)];
    if (!gradient.view.defined()) continue;
    at::Tensor& mine = gradient.parameter.mutable_grad();
    std::byte* from = flat + gradient.offset;
    if (!has_own(gradient)) {
      substitute_for(gradient);
    } else if (alike(mine, gradient.view)) {
      from = static_cast<std::byte*>(mine.data_ptr());
    } else {
      gradient.view.copy_(mine.detach());
    }
    if (!factor_ && from == flat + gradient.offset) continue;  // there already
    pieces.push_back({from, gradient.view.nbytes()});
    offsets.push_back(gradient.offset);
  }
  std::optional<PackFactor> factor;
  if (factor_) factor = {dtype_of(Collective::all_reduce, bucket.flat), *factor_};
  pack(flat, pieces, offsets, factor);
  for (const int index : bucket.parameters) {
    Gradient& gradient = gradients_[static_cast<size_t>(index)];
    if (!gradient.view.defined() || gradient.substitute.defined()) continue;
    at::Tensor& mine = gradient.parameter.mutable_grad();
    if (!same_memory(mine, gradient.view)) mine = gradient.view;
  }
}

// Of a parameter that travels on its own: a tensor laid out as it.
at::Tensor BucketReducer::contribution_of(Gradient& gradient) {
  if (!has_own(gradient)) return substitute_for(gradient);
  at::Tensor& mine = gradient.parameter.mutable_grad();
  if (!alike(mine, gradient.parameter)) {
    auto laid_out = at::empty_like(gradient.parameter);
    laid_out.copy_(mine.detach());
    mine = laid_out;
  }
  return mine;
}

// For a parameter that this backward has not used: zeros, or the gradient of an earlier one.
at::Tensor BucketReducer::substitute_for(Gradient& gradient) {
  const at::Tensor& mine = gradient.parameter.mutable_grad();
  if (!gradient.view.defined()) {
    gradient.substitute = mine.defined() ? at::empty_like(gradient.parameter).copy_(mine.detach())
                                         : at::zeros_like(gradient.parameter);
    return gradient.substitute;
  }
  gradient.substitute = gradient.view;
  if (!mine.defined()) {
    gradient.view.zero_();
  } else if (same_memory(mine, gradient.view)) {
    gradient.kept = mine.detach().clone();
  } else {
    gradient.view.copy_(mine.detach());
  }
  return gradient.view;
}

// One byte for each parameter: used here. Then one: this backward was interrupted.
c10::intrusive_ptr<c10d::Work> BucketReducer::tell(Part part) {
  auto* const told = told_.data_ptr<uint8_t>();
  for (size_t i = 0; i < gradients_.size(); ++i) told[i] = part == Part::own && gradients_[i].used;
  told[gradients_.size()] = part == Part::interrupted;
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  options.asyncOp = true;
  Tensors tensors{told_};
  return hosts_->allreduce(tensors, options);
}

void BucketReducer::reduce_rest(Part part) {
  struct Rest {
    BucketReducer& reducer;
    ~Rest() { reducer.rest(); }
  } at_the_end{*this};
  *in_arena_ = false;
  while (next_ < buckets_.size()) launch_next(part);
  const auto telling = tell(part);
  wait_for_buckets();
  wait_for_hosts(telling);
  const bool interrupted = told_[static_cast<int64_t>(gradients_.size())].item<bool>();
  if (part == Part::own) adopt_substitutes();
  for (auto& gradient : gradients_) gradient.used = false;
  if (part == Part::own) {
    PYCOMM_USAGE(!interrupted,
                 "DataParallel: the gradients of this backward lack those of a rank whose backward "
                 "was interrupted by an exception; skip this step on all ranks");
  }
  if (interrupted) return;
  if (measured_) {
    try_sizes();
  } else {
    agree_on_order();
  }
}

void BucketReducer::adopt_substitutes() {
  const auto* const told = told_.data_ptr<uint8_t>();
  for (size_t i = 0; i < gradients_.size(); ++i) {
    Gradient& gradient = gradients_[i];
    if (!gradient.substitute.defined()) continue;
    if (told[i]) {
      gradient.parameter.mutable_grad() = gradient.substitute;
    } else if (gradient.kept.defined()) {
      gradient.parameter.mutable_grad() = gradient.kept;
    }
  }
}

}  // namespace pycomm
