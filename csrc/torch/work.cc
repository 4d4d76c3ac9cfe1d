// SPDX-License-Identifier: MIT
#include "torch/work.h"

#include <ATen/core/ivalue_inl.h>
#include <pybind11/pybind11.h>

namespace pycomm {
namespace {

uint64_t next_key() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1);
}

}  // namespace

Work::Work(std::shared_ptr<Completions> completions, int rank, int world_size, c10d::OpType type,
           const char* title, const std::optional<std::vector<at::Tensor>>& inputs,
           std::vector<at::Tensor> outputs)
    : c10d::Work(rank, type, title, inputs),
      completions_(std::move(completions)),
      key_(next_key()),
      world_size_(world_size),
      outputs_(std::move(outputs)),
      begun_(std::chrono::steady_clock::now()) {}

void Work::submit(const c10::intrusive_ptr<Work>& work, Engine& engine,
                  std::vector<std::shared_ptr<Operation>> operations) {
  work->operations_ = std::move(operations);
  work->remaining_ = work->unexecuted_ = work->operations_.size();
  work->order_ = engine.callback_order();
  work->depth_ = work->order_->depth_here();
  work->completions_->begin();
  // A copy: the work may be finished, and its list read by others, while we still submit.
  const auto all = work->operations_;
  size_t submitted = 0;
  try {
    for (const auto& operation : all) {
      operation->on_finished = [work](Operation& done) { work->on_operation_finished(done); };
      operation->on_executed = [work] { work->on_operation_executed(); };
      engine.submit(operation);
      ++submitted;
    }
  } catch (...) {
    for (size_t i = submitted; i < all.size(); ++i) all[i]->on_finished = nullptr;
    // Those that were submitted end sooner or later, but nobody will ever see this work.
    work->completions_->abandon();
    throw;
  }
}

// Collectives that Python callbacks of this work call come before all that were called after it, so
// these must not start yet. Callbacks in C++ (DDP without a hook) call none and hold up nobody.
void Work::on_operation_executed() {
  if (unexecuted_.fetch_sub(1) != 1) return;
  const std::lock_guard lock(mutex_);
  sealed_ = true;
  if (future_ && from_python_) gate_ = order_->close(depth_);
}

void Work::on_operation_finished(const Operation& operation) {
  if (operation.failure) {
    const std::lock_guard lock(mutex_);
    if (!first_error_) {
      ended_as_ = operation.failure.kind;
      try {
        raise(operation, operation.failure, rank_, world_size_);
      } catch (...) {
        first_error_ = std::current_exception();
      }
    }
  }
  if (remaining_.fetch_sub(1) != 1) return;
  // Before anybody can know: the profiler may be stopped by whoever waits.
  if (recordFunctionEndCallback_) {
    recordFunctionEndCallback_();
    recordFunctionEndCallback_ = nullptr;
  }
  c10::intrusive_ptr<c10::ivalue::Future> future, result;
  {
    const std::lock_guard lock(mutex_);
    finished_ = std::chrono::steady_clock::now();
    completed_ = true;
    exception_ = first_error_;
    future = future_;
    result = result_;
  }
  cv_.notify_all();
  completions_->end(
      {c10d::WorkInfo(opType_, getSequencenumber(), begun_, finished_, finished_ - begun_), key_,
       !exception_});
  if (!future && !result) return;
  const auto self = c10::intrusive_ptr<Work>::reclaim_copy(this);
  completions_->pool().run([self, future, result] {
    if (future && self->gate_) {
      const CallbackOrder::Scope scope(self->order_, self->gate_);
      self->complete(future);
    } else if (future) {
      self->complete(future);
    }
    if (result) self->complete_result(result);
  });
}

void Work::complete(const c10::intrusive_ptr<c10::ivalue::Future>& future) const {
  if (exception_) {
    future->setError(exception_);
  } else {
    future->markCompleted(c10::IValue(outputs_));
  }
}

void Work::complete_result(const c10::intrusive_ptr<c10::ivalue::Future>& future) const {
  auto result = c10d::WorkResult::SUCCESS;
  if (exception_) {
    result = ended_as_ == FailureKind::timeout ? c10d::WorkResult::TIMEOUT
                                               : c10d::WorkResult::COMM_ERROR;
  }
  future->markCompleted(c10::IValue(static_cast<int64_t>(result)));
}

bool Work::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto done = [this] { return completed_; };
  if (timeout == kNoTimeout || timeout.count() < 0) {
    cv_.wait(lock, done);  // ends at the operation's own deadline
  } else if (!cv_.wait_for(lock, timeout, done)) {
    const double seconds = std::chrono::duration<double>(timeout).count();
    raise(*operations_.front(),
          {FailureKind::timeout,
           str("not finished after ", seconds,
               " s, the timeout given to wait(); it goes on in the background"),
           {}},
          rank_, world_size_);
  }
  const auto error = exception_;
  lock.unlock();
  if (error) std::rethrow_exception(error);
  return true;
}

int Work::sourceRank() const { return operations_.front()->source; }

// A moment at most: the last operation has been executed. Finishing it may free tensors, and for
// that need the GIL.
void Work::await_completion(bool holds_gil) {
  std::optional<pybind11::gil_scoped_release> release;
  if (holds_gil) release.emplace();
  std::unique_lock lock(mutex_);
  cv_.wait(lock, [this] { return completed_; });
}

c10::intrusive_ptr<c10::ivalue::Future> Work::getFuture() {
  const bool from_python = Py_IsInitialized() && PyGILState_Check();
  std::unique_lock lock(mutex_);
  from_python_ |= from_python;
  if (future_) return future_;
  // Callbacks that are attached to a completed Future run at once, in the order of the program.
  if (sealed_ && !completed_) {
    lock.unlock();
    await_completion(from_python);
    lock.lock();
    if (future_) return future_;
  }
  future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
  const auto future = future_;
  const bool completed = completed_;
  lock.unlock();
  if (completed) complete(future);
  return future;
}

c10::intrusive_ptr<c10::ivalue::Future> Work::getFutureResult() {
  std::unique_lock lock(mutex_);
  if (result_) return result_;
  result_ = c10::make_intrusive<c10::ivalue::Future>(c10::IntType::get());
  const auto result = result_;
  const bool completed = completed_;
  lock.unlock();
  if (completed) complete_result(result);
  return result;
}

uint64_t Work::getSequencenumber() const { return operations_.front()->sequence; }

float Work::getDuration() const {
  const std::lock_guard lock(mutex_);
  PYCOMM_USAGE(completed_, "get_duration: the work is still under way; call wait() first");
  return std::chrono::duration<float, std::milli>(finished_ - begun_).count();
}

}  // namespace pycomm
