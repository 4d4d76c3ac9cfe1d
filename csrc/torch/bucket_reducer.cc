// SPDX-License-Identifier: MIT
// The course of one backward: beginning, gradients, end. What goes out is in bucket_launch.cc.
#include "torch/bucket_reducer.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <numeric>
#include <thread>
#include <unordered_map>

#include "base/deadline.h"
#include "base/error.h"
#include "base/limits.h"
#include "torch/arena_allocator.h"
#include "torch/errors.h"

namespace pycomm {
namespace {

using Tensors = std::vector<at::Tensor>;

// Whether autograd goes on reading the memory that it has `handed` over as `mine`, which it does
// without a copy for views: the terms of a sum, say, have one memory as their gradient.
bool is_read_elsewhere(const at::Tensor& mine, const at::Tensor& handed) {
  if (!handed.defined() || !mine.is_alias_of(handed)) return false;
  size_t holders = 2;
  if (handed.is_view() && handed._base().is_alias_of(handed)) {
    if (handed._base().use_count() > 1) return true;
    ++holders;
  }
  return mine.storage().use_count() > holders;
}

// Two reducers of one backend in one backward, a generator's and a discriminator's, must send in
// the same order on all ranks, also where one rank leaves out a parameter and so completes buckets
// later, or is interrupted. So the one that begins first sends early, and any other at its end, in
// the order in which they have begun.
struct Begun {
  const BucketReducer* which;
  std::weak_ptr<BucketReducer> reducer;
};
std::mutex begun_mutex;

std::unordered_map<const c10d::Backend*, std::vector<Begun>>& begun_by_backend() {
  static auto* const map = new std::unordered_map<const c10d::Backend*, std::vector<Begun>>;
  return *map;
}

bool in_backward() { return torch::autograd::get_current_graph_task_id() != -1; }

}  // namespace

// Before the function that made an output: the first thing a backward does.
class BeginHook final : public torch::autograd::FunctionPreHook {
 public:
  BeginHook(std::weak_ptr<BucketReducer> reducer, bool reduce)
      : reducer_(std::move(reducer)), reduce_(reduce) {}
  Tensors operator()(const Tensors& gradients) override {
    if (const auto reducer = reducer_.lock()) {
      const std::lock_guard lock(reducer->mutex_);
      raising_in_python([&] { reducer->begin(reduce_); });
    }
    return gradients;
  }

 private:
  const std::weak_ptr<BucketReducer> reducer_;
  const bool reduce_;
};

// After a gradient, or a part of it, has been added to param.grad.
class GradientHook final : public torch::autograd::FunctionPostHook {
 public:
  GradientHook(std::weak_ptr<BucketReducer> reducer, size_t index)
      : reducer_(std::move(reducer)), index_(index) {}
  Tensors operator()(const Tensors& outputs, const Tensors& inputs) override {
    if (const auto reducer = reducer_.lock()) {
      raising_in_python([&] { reducer->on_gradient(index_, inputs.at(0)); });
    }
    return outputs;
  }

 private:
  const std::weak_ptr<BucketReducer> reducer_;
  const size_t index_;
};

BucketReducer::BucketReducer(BackendPtr backend, BackendPtr hosts, Tensors parameters,
                             ReducerOptions options)
    : backend_(std::move(backend)),
      hosts_(std::move(hosts)),
      options_(std::move(options)),
      trial_(options_.bucket_bytes) {
  PYCOMM_USAGE(options_.names.size() == parameters.size(), "DataParallel: got ",
               options_.names.size(), " names for ", parameters.size(), " parameters");
  gradients_.resize(parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) gradients_[i].parameter = parameters[i];
  if (const auto where = parameters.at(0).device(); !where.is_cpu()) {
    stream_ = std::make_unique<BucketStream>(where);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const auto dtype = parameters[i].scalar_type();
      PYCOMM_USAGE(DeviceBucket::serves(dtype), "DataParallel: ", options_.names[i], " is ", dtype,
                   " on ", where,
                   ", expected float32, float64, float16, bfloat16, complex64 or complex128 there");
    }
  }
  divide_by(0);
  told_ = at::zeros({static_cast<int64_t>(parameters.size()) + 1}, at::kByte);
  order_.resize(parameters.size());
  std::iota(order_.rbegin(), order_.rend(), 0);
  lay_out();
  if (!stream_) install_arena_for_followers();
}

BucketReducer::~BucketReducer() {
  release_backend();
  *in_arena_ = false;
  for (const auto& detach : detach_) detach();
  if (!stream_) uninstall_arena_for_followers();
}

void BucketReducer::attach() {
  for (size_t i = 0; i < gradients_.size(); ++i) {
    auto node = torch::autograd::impl::grad_accumulator(gradients_[i].parameter);
    gradients_[i].accumulator = node.get();
    const auto key = node->add_post_hook(std::make_unique<GradientHook>(weak_from_this(), i));
    // Keeps the node alive, too, which a parameter does not.
    detach_.push_back([node, key] { node->del_post_hook(key); });
  }
}

void BucketReducer::recover() {
  std::vector<Begun> begun;
  {
    const std::lock_guard lock(begun_mutex);
    if (const auto found = begun_by_backend().find(backend_.get());
        found != begun_by_backend().end()) {
      begun = found->second;
    }
  }
  for (const auto& one : begun) {
    if (const auto reducer = one.reducer.lock()) reducer->end_interrupted();
  }
}

// A device's backward runs on a thread of autograd's, which lets go of it a moment after whoever
// called it has its exception.
void BucketReducer::await_end_of_backward() {
  const auto patience = Deadline::after(kBackwardEndPatience);
  while (stream_ && !in_backward() && !patience.expired()) {
    {
      const std::lock_guard lock(mutex_);
      if (!active_ || backward_.expired()) return;
    }
    std::this_thread::sleep_for(kReadyNap);
  }
}

void BucketReducer::end_interrupted() {
  await_end_of_backward();
  const std::lock_guard lock(mutex_);
  // A checkpoint runs forward again within backward, and another thread may while one goes on.
  if (!active_ || in_backward() || !backward_.expired()) return;
  if (reduce_) {
    reduce_rest(Part::interrupted);
  } else {
    rest();
  }
}

void BucketReducer::arm(const Tensors& outputs, bool reduce) {
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < gradients_.size(); ++i) {
      const at::Tensor& parameter = gradients_[i].parameter;
      PYCOMM_USAGE(torch::autograd::impl::try_get_grad_accumulator(parameter).get() ==
                       gradients_[i].accumulator,
                   "DataParallel: parameter ", options_.names[i], " has become ",
                   parameter.scalar_type(),
                   " since DataParallel was made; convert the model first and wrap it then");
    }
    armed_ = true;
    armed_reduce_ = reduce;
  }
  for (const auto& output : outputs) {
    if (const auto node = output.grad_fn()) {
      node->add_pre_hook(std::make_unique<BeginHook>(weak_from_this(), reduce));
    }
  }
}

void BucketReducer::set_divisor(int divisor) {
  const std::lock_guard lock(mutex_);
  divide_by(divisor);
}

void BucketReducer::shadow() {
  const std::lock_guard lock(mutex_);
  reduce_rest(Part::absent);
}

// Under mutex_, as everything below.
void BucketReducer::begin(bool reduce) {
  if (active_) {
    reduce_ |= reduce;
    return;
  }
  if (stream_) stream_->refuse_capture();
  active_ = true;
  reduce_ = reduce;
  sends_early_ = claim_backend();
  begun_ = std::chrono::steady_clock::now();
  if (!stream_) {
    *in_arena_ = true;
    follow_arena_flag(in_arena_);
  }
  const auto backward = std::make_shared<char>();
  backward_ = backward;
  torch::autograd::Engine::get_default_engine().queue_callback([weak = weak_from_this(), backward] {
    const auto reducer = weak.lock();
    if (!reducer) return;
    const std::lock_guard lock(reducer->mutex_);
    raising_in_python([&] { reducer->finish(); });
  });
}

// A large gradient is reduced where it lies, so nobody else may be reading there.
void BucketReducer::own_gradient(Gradient& gradient, const at::Tensor& handed) {
  at::Tensor& mine = gradient.parameter.mutable_grad();
  if (gradient.view.defined() || !mine.defined() || mine.layout() != at::kStrided) return;
  if (is_read_elsewhere(mine, handed)) mine = mine.detach().clone();
}

void BucketReducer::on_gradient(size_t index, const at::Tensor& handed) {
  const std::lock_guard lock(mutex_);
  if (!active_) {
    if (!armed_) return;  // a backward of something else than a forward's output
    begin(armed_reduce_);
  }
  Gradient& gradient = gradients_[index];
  gradient.used = true;
  own_gradient(gradient, handed);
  if (stream_) buckets_[gradient.bucket].on_device->arrives_on(stream_->current());
  if (!reduce_) return;
  ++gradient.brought;
  if (!measured_) {
    if (gradient.brought == 1) readiness_.push_back(static_cast<int>(index));
    return;
  }
  Bucket& bucket = buckets_[gradient.bucket];
  PYCOMM_USAGE(gradient.brought <= gradient.expected || !bucket.work, "DataParallel: parameter ",
               options_.names[index], " got gradients in ", gradient.brought, " parts, expected ",
               gradient.expected,
               " as in the first backward, and its bucket has gone out; let the first backward "
               "use a module as often as any later one does");
  if (gradient.brought != gradient.expected || --bucket.waiting > 0) return;
  while (sends_early_ && next_ < buckets_.size() && buckets_[next_].waiting == 0) {
    launch_next(Part::own);
  }
}

void BucketReducer::finish() {
  if (!active_) return;
  if (reduce_) {
    reduce_rest(Part::own);
  } else {
    rest();
  }
}

bool BucketReducer::claim_backend() {
  const std::lock_guard lock(begun_mutex);
  auto& begun = begun_by_backend()[backend_.get()];
  begun.push_back({this, weak_from_this()});
  return begun.size() == 1;
}

void BucketReducer::release_backend() {
  const std::lock_guard lock(begun_mutex);
  const auto found = begun_by_backend().find(backend_.get());
  if (found == begun_by_backend().end()) return;
  std::erase_if(found->second, [this](const Begun& one) { return one.which == this; });
  if (found->second.empty()) begun_by_backend().erase(found);
}

void BucketReducer::rest() {
  release_backend();
  *in_arena_ = false;
  active_ = armed_ = false;
  next_ = 0;
  readiness_.clear();
  for (auto& bucket : buckets_) {
    bucket.waiting = bucket.parameters.size();
    bucket.work.reset();
    bucket.small.reset();
  }
  for (auto& gradient : gradients_) {
    gradient.brought = 0;
    gradient.substitute.reset();
    gradient.kept.reset();
  }
}

std::vector<std::vector<int>> BucketReducer::buckets() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::vector<int>> all;
  for (const auto& bucket : buckets_) all.push_back(bucket.parameters);
  return all;
}

std::pair<size_t, bool> BucketReducer::bucket_bytes() const {
  const std::lock_guard lock(mutex_);
  return {trial_.size(), trial_.settled()};
}

}  // namespace pycomm
