// SPDX-License-Identifier: MIT
#include "torch/work.h"

#include <ATen/core/ivalue_inl.h>

namespace pycomm {

Work::Work(std::shared_ptr<CallbackPool> callbacks, int rank, int world_size, c10d::OpType type,
           const char* title, const std::optional<std::vector<at::Tensor>>& inputs,
           std::vector<at::Tensor> outputs)
    : c10d::Work(rank, type, title, inputs),
      callbacks_(std::move(callbacks)),
      world_size_(world_size),
      outputs_(std::move(outputs)),
      begun_(std::chrono::steady_clock::now()) {}

void Work::submit(const c10::intrusive_ptr<Work>& work, Engine& engine,
                  std::vector<std::shared_ptr<Operation>> operations) {
  work->operations_ = std::move(operations);
  work->remaining_ = work->operations_.size();
  // A copy: the work may be finished, and its list read by others, while we still submit.
  const auto all = work->operations_;
  size_t submitted = 0;
  try {
    for (const auto& operation : all) {
      operation->on_finished = [work](Operation& done) { work->on_operation_finished(done); };
      engine.submit(operation);
      ++submitted;
    }
  } catch (...) {
    for (size_t i = submitted; i < all.size(); ++i) all[i]->on_finished = nullptr;
    throw;
  }
}

void Work::on_operation_finished(const Operation& operation) {
  if (operation.failure) {
    const std::lock_guard lock(mutex_);
    if (!first_error_) {
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
  c10::intrusive_ptr<c10::ivalue::Future> future;
  {
    const std::lock_guard lock(mutex_);
    finished_ = std::chrono::steady_clock::now();
    completed_ = true;
    exception_ = first_error_;
    future = future_;
  }
  cv_.notify_all();
  if (!future) return;
  callbacks_->run([future, error = exception_, outputs = outputs_] {
    if (error) {
      future->setError(error);
    } else {
      future->markCompleted(c10::IValue(outputs));
    }
  });
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

c10::intrusive_ptr<c10::ivalue::Future> Work::getFuture() {
  std::unique_lock lock(mutex_);
  if (future_) return future_;
  future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
  const auto future = future_;
  const bool completed = completed_;
  const auto error = exception_;
  lock.unlock();
  if (completed && error) future->setError(error);
  if (completed && !error) future->markCompleted(c10::IValue(outputs_));
  return future;
}

uint64_t Work::getSequencenumber() const { return operations_.front()->sequence; }

float Work::getDuration() const {
  return std::chrono::duration<float, std::milli>(finished_ - begun_).count();
}

}  // namespace pycomm
