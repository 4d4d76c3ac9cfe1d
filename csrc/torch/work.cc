// SPDX-License-Identifier: MIT
#include "torch/work.h"

#include <ATen/core/ivalue_inl.h>
#include <c10/core/StreamGuard.h>
#include <pybind11/pybind11.h>

#include <thread>

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

void Work::submit(const c10::intrusive_ptr<Work>& work, const std::shared_ptr<Engine>& engine,
                  std::vector<std::shared_ptr<Operation>> operations) {
  work->operations_ = std::move(operations);
  work->remaining_ = work->operations_.size();
  work->order_ = engine->callback_order();
  work->engine_ = engine;
  work->completions_->begin();
  // A copy: the work may be finished, and its list read by others, while we still submit.
  const auto all = work->operations_;
  size_t submitted = 0;
  try {
    for (const auto& operation : all) {
      operation->on_finished = [work](Operation& done) { work->on_operation_finished(done); };
      engine->submit(operation);
      ++submitted;
    }
  } catch (...) {
    for (size_t i = submitted; i < all.size(); ++i) all[i]->on_finished = nullptr;
    // Those that were submitted end sooner or later, but nobody will ever see this work.
    work->completions_->abandon();
    throw;
  }
}

void Work::captured(const std::shared_ptr<Engine>& engine, std::shared_ptr<Operation> operation) {
  engine_ = engine;
  order_ = engine->callback_order();
  remaining_ = 1;
  completions_->begin();
  operations_.push_back(operation);
  operation->finish({});
  on_operation_finished(*operation);
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
  GatePtr gate;
  {
    const std::lock_guard lock(mutex_);
    gate = gate_;
    finished_ = std::chrono::steady_clock::now();
    completed_ = true;
    exception_ = first_error_;
    if (!device_) future = future_;
    result = result_;
  }
  cv_.notify_all();
  if (completions_->wanted()) {
    completions_->end(
        {c10d::WorkInfo(opType_, getSequencenumber(), begun_, finished_, finished_ - begun_), key_,
         !exception_});
  } else {
    completions_->abandon();
  }
  if (!future && !result) return;
  const auto self = c10::intrusive_ptr<Work>::reclaim_copy(this);
  completions_->pool().run([self, future, result, gate] {
    if (future && gate) {
      const CallbackOrder::Scope scope(self->order_, gate);
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

// What one who is about to wait can do for it; without a lock, since it may complete this work.
void Work::get_on(bool patient) {
  const auto engine = engine_.lock();
  if (!engine) return;
  // Inside a callback that holds back what it waits for.
  if (const auto gate = order_->here()) engine->give_way(gate, *operations_.back());
  if (patient) engine->assist(*operations_.back());
}

// In a forked child: whether this work had ended by then; throws where it failed or had not.
// Without a lock, since a thread of the parent may have held it.
bool Work::ended_before_fork() const {
  const auto engine = engine_.lock();
  if (!engine || !engine->forked()) return false;
  for (const auto& operation : operations_) {
    if (!operation->finished()) engine->refuse_fork(*operation);
    if (operation->failure) raise(*operation, operation->failure, rank_, world_size_);
  }
  return true;
}

void Work::raise_late(std::chrono::milliseconds timeout) const {
  const double seconds = std::chrono::duration<double>(timeout).count();
  raise(*operations_.front(),
        {FailureKind::timeout,
         str("not finished after ", seconds,
             " s, the timeout given to wait(); it goes on in the background"),
         {}},
        rank_, world_size_);
}

bool Work::isCompleted() {
  const std::lock_guard lock(mutex_);
  return completed_ && (!device_ || exception_ || device_->reached());
}

void Work::synchronize() {
  if (!device_) return;
  device_->event->hold(device_->lane->current_native());
  let_go();
}

// The stream of the call has just been made to wait, so whoever gets the memory after it comes
// after the end: nobody need keep the tensors, as after a synchronous call. Other operations may be
// over.
void Work::let_go() const {
  DeviceLane& lane = *device_->lane;
  const bool waits = lane.current_native() == device_->caller;
  std::vector<at::Tensor> over;
  // A call may hold the lock for long, and sweeps itself.
  const std::unique_lock lock(lane.mutex(), std::try_to_lock);
  if (lock) over = lane.sweep(waits ? device_->kept : 0);
}

// The current stream waits; the host only when it has been told to, and then for the stream as
// well.
bool Work::wait_on_device(std::chrono::milliseconds timeout) {
  const bool patient = timeout == kNoTimeout || timeout.count() < 0;
  const auto until = patient ? Deadline::never() : Deadline::after(timeout);
  // A group that has failed ends its operations at once, and this one's error is worth the moment.
  const auto engine = engine_.lock();
  const bool ending = engine && engine->failure();
  {
    std::unique_lock lock(mutex_);
    const auto done = [this] { return completed_; };
    if (!patient) {
      if (!cv_.wait_for(lock, timeout, done)) raise_late(timeout);
    } else if (device_->blocking || ending) {
      cv_.wait(lock, done);
    }
    if (exception_) std::rethrow_exception(exception_);
  }
  synchronize();
  while ((!patient || device_->blocking) && !device_->reached()) {
    if (until.expired()) raise_late(timeout);
    std::this_thread::sleep_for(kReadyNap);
  }
  return true;
}

bool Work::wait(std::chrono::milliseconds timeout) {
  if (ended_before_fork()) return true;
  if (device_) return wait_on_device(timeout);
  const bool patient = timeout == kNoTimeout || timeout.count() < 0;
  if (!operations_.back()->finished()) get_on(patient);
  std::unique_lock lock(mutex_);
  const auto done = [this] { return completed_; };
  if (patient) {
    cv_.wait(lock, done);  // ends at the operation's own deadline
  } else if (!cv_.wait_for(lock, timeout, done)) {
    raise_late(timeout);
  }
  const auto error = exception_;
  lock.unlock();
  if (error) std::rethrow_exception(error);
  return true;
}

int Work::sourceRank() const {
  const Operation& first = *operations_.front();
  if (device_) (void)first.wait_finished(Deadline::never());  // ends at its own deadline
  return first.source;
}

// Python may attach callbacks that call collectives, so the Future gets a gate, see
// callback_order.h. Callbacks in C++ (DDP without a Python hook) call none and hold up nobody.
// Messages get none either: what comes later may be what makes the peer send.
c10::intrusive_ptr<c10::ivalue::Future> Work::getFuture() {
  if (device_) return future_on_device();
  const bool from_python = Py_IsInitialized() && PyGILState_Check();
  if (ended_before_fork()) {
    const auto ended =
        c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    ended->markCompleted(c10::IValue(outputs_));
    return ended;
  }
  std::unique_lock lock(mutex_);
  if (!completed_ && !gate_ && from_python && !c10d::isP2POp(opType_)) {
    if (const auto engine = engine_.lock()) gate_ = engine->hold_back();
  }
  if (future_) return future_;
  future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
  const auto future = future_;
  const bool completed = completed_;
  lock.unlock();
  if (completed) complete(future);
  return future;
}

// Complete at once, with events behind the end of the operation: callbacks run now, under streams
// that wait for them.
c10::intrusive_ptr<c10::ivalue::Future> Work::future_on_device() {
  std::unique_lock lock(mutex_);
  if (future_) return future_;
  future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                     std::vector{device_->lane->where()});
  const auto future = future_;
  const auto error = exception_;
  lock.unlock();
  if (error) {
    future->setError(error);
  } else {
    const c10::StreamGuard guard(device_->lane->behind(*device_->event));
    future->markCompleted(c10::IValue(outputs_));
  }
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
