// SPDX-License-Identifier: MIT
// What an asynchronous call returns: c10d's Work over one or several operations of the engine.
//
// Completed by the thread that finishes the last operation; the Future, made when first asked for,
// is completed by a thread of the callback pool and runs its callbacks there. Holds the tensors
// until then. Thread-safe, as c10d demands.
#pragma once

#include <atomic>
#include <memory>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "engine/callback_pool.h"
#include "engine/engine.h"

namespace pycomm {

class Work final : public c10d::Work {
 public:
  // `callbacks` runs what users attach to the Future.
  Work(std::shared_ptr<CallbackPool> callbacks, int rank, int world_size, c10d::OpType type,
       const char* title, const std::optional<std::vector<at::Tensor>>& inputs,
       std::vector<at::Tensor> outputs);

  // Hands the operations to the engine. Throws what Engine::submit throws; the work has failed
  // then.
  static void submit(const c10::intrusive_ptr<Work>& work, Engine& engine,
                     std::vector<std::shared_ptr<Operation>> operations);

  // Keeps tensors alive until the work is gone.
  void hold(std::vector<at::Tensor> tensors) { held_ = std::move(tensors); }
  bool wait(std::chrono::milliseconds timeout) override;
  int sourceRank() const override;
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  uint64_t getSequencenumber() const override;
  float getDuration() const override;

 private:
  void on_operation_finished(const Operation& operation);

  const std::shared_ptr<CallbackPool> callbacks_;
  const int world_size_;
  std::vector<at::Tensor> outputs_;
  std::vector<at::Tensor> held_;
  std::vector<std::shared_ptr<Operation>> operations_;
  std::atomic<size_t> remaining_{0};
  std::exception_ptr first_error_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;  // under mutex_
  std::chrono::steady_clock::time_point begun_, finished_;
};

}  // namespace pycomm
