// SPDX-License-Identifier: MIT
// What an asynchronous call returns: c10d's Work over one or several operations of the engine.
//
// Who waits for it runs it, unless another thread has begun; otherwise the progress thread does.
// Completed by the thread that finishes the last operation; the Futures, made when first asked for,
// are completed by a thread of the callback pool and run their callbacks there. Holds the tensors
// until then. Thread-safe, as c10d demands.
//
// Of an operation on a device wait() makes the current stream wait and returns, and a Future is
// complete when it is asked for, its value being for whoever waits by streams. What fails later is
// raised by the next wait() or call.
#pragma once

#include <torch/version.h>

#include <atomic>
#include <functional>
#include <memory>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "engine/engine.h"
#include "torch/completions.h"
#include "torch/device_lane.h"

namespace pycomm {

// Where a device's stream has done with an operation.
struct DeviceEnd {
  std::shared_ptr<DeviceLane> lane;
  DeviceLane::EventPtr event;
  std::function<bool()> passed;  // the stream has done with it; null: a graph has it
  bool blocking;                 // wait() waits for the end itself
  void* caller;                  // the stream that was current at the call
  uint64_t kept = 0;             // what the lane keeps for it, 0: nothing

  bool reached() const { return !passed || passed(); }
};

class Work final : public c10d::Work {
 public:
  Work(std::shared_ptr<Completions> completions, int rank, int world_size, c10d::OpType type,
       const char* title, const std::optional<std::vector<at::Tensor>>& inputs,
       std::vector<at::Tensor> outputs);

  // Hands the operations to the engine. Throws what Engine::submit throws; the work has failed
  // then.
  static void submit(const c10::intrusive_ptr<Work>& work, const std::shared_ptr<Engine>& engine,
                     std::vector<std::shared_ptr<Operation>> operations);

  // Before submit().
  void ends_on_device(DeviceEnd end) { device_ = std::move(end); }
  // When everything is on the stream, before anybody else has the work. `kept`: see DeviceEnd.
  void ended_on(void* stream, uint64_t kept) {
    device_->event->record(stream);
    device_->kept = kept;
  }

  // Instead of submit(), for what a graph captures: the engine has nothing to do with it.
  void captured(const std::shared_ptr<Engine>& engine, std::shared_ptr<Operation> operation);

  // Keeps tensors alive until the work is gone.
  void hold(std::vector<at::Tensor> tensors) { held_ = std::move(tensors); }
  bool isCompleted() override;
  bool wait(std::chrono::milliseconds timeout) override;
  void synchronize() override;
  // On a device waits until the message is there.
  int sourceRank() const override;
  std::vector<at::Tensor> result() override { return outputs_; }
  // No stream computes for CPU tensors, so this waits.
  void blockCurrentStream() override { device_ ? synchronize() : void(wait(kNoTimeout)); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  // Never fails: completed with a WorkResult when the work is over, however it ended.
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override;
  uint64_t getSequencenumber() const override;
  // Milliseconds from the call to the end. Throws UsageError before the end.
  float getDuration() const override;
#if TORCH_VERSION_MINOR >= 15
  uint64_t getCompletionKey() const override { return key_; }
#endif

 private:
  void get_on(bool patient);
  bool wait_on_device(std::chrono::milliseconds timeout);
  void let_go() const;
  c10::intrusive_ptr<c10::ivalue::Future> future_on_device();
  [[noreturn]] void raise_late(std::chrono::milliseconds timeout) const;
  bool ended_before_fork() const;
  void on_operation_finished(const Operation& operation);

  void complete(const c10::intrusive_ptr<c10::ivalue::Future>& future) const;
  void complete_result(const c10::intrusive_ptr<c10::ivalue::Future>& future) const;

  const std::shared_ptr<Completions> completions_;
  const uint64_t key_;
  const int world_size_;
  std::vector<at::Tensor> outputs_;
  std::vector<at::Tensor> held_;
  std::vector<std::shared_ptr<Operation>> operations_;
  std::atomic<size_t> remaining_{0};
  std::optional<DeviceEnd> device_;
  std::weak_ptr<Engine> engine_;
  std::shared_ptr<CallbackOrder> order_;
  GatePtr gate_;  // under mutex_: closed until the callbacks of the Future have run
  std::exception_ptr first_error_;
  FailureKind ended_as_ = FailureKind::none;
  c10::intrusive_ptr<c10::ivalue::Future> future_, result_;  // under mutex_
  std::chrono::steady_clock::time_point begun_, finished_;
};

}  // namespace pycomm
