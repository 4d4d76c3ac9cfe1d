// SPDX-License-Identifier: MIT
// The c10d::Backend: checks tensors, makes operations of them, hands them to the engine. Nothing
// else.
//
// A synchronous call (asyncOp == false) runs on the caller's thread and returns no Work; any other
// returns a Work at once. Calls may come from any thread; their order is the order in which they
// take the engine's lock, and must be the same on all ranks. Called without the GIL.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "engine/engine.h"
#include "torch/tensors.h"
#include "torch/work.h"

namespace pycomm {

// What pycomm/options.py fills in.
struct BackendOptions final : c10d::Backend::Options {
  BackendOptions() : c10d::Backend::Options("pycomm") {}
  MeshOptions mesh;
  EngineOptions engine;
};

// Stands at the top of every collective. When the call is refused, the collective still takes its
// number, see Engine::skip().
class SequenceSlot {
 public:
  explicit SequenceSlot(Engine& engine) : engine_(engine) {}
  ~SequenceSlot() {
    if (std::uncaught_exceptions() > exceptions_) engine_.skip();
  }
  SequenceSlot(const SequenceSlot&) = delete;
  SequenceSlot& operator=(const SequenceSlot&) = delete;

 private:
  Engine& engine_;
  const int exceptions_ = std::uncaught_exceptions();
};

class Backend final : public c10d::Backend {
 public:
  // Collective: connects all ranks. Throws CommError or UsageError.
  Backend(c10::intrusive_ptr<c10d::Store> store, int rank, int world_size,
          c10::intrusive_ptr<BackendOptions> options);
  ~Backend() override;

  using Tensors = std::vector<at::Tensor>;
  using TensorLists = std::vector<std::vector<at::Tensor>>;
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override;
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& opts) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override;
  WorkPtr allgather(TensorLists& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& opts) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& opts) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& opts) override;
  WorkPtr gather(TensorLists& outputs, Tensors& inputs, const c10d::GatherOptions& opts) override;
  WorkPtr scatter(Tensors& outputs, TensorLists& inputs, const c10d::ScatterOptions& opts) override;
  WorkPtr reduce_scatter(Tensors& outputs, TensorLists& inputs,
                         const c10d::ReduceScatterOptions& opts) override;
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& opts) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& opts) override;
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_sizes,
                        std::vector<int64_t>& input_sizes,
                        const c10d::AllToAllOptions& opts) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& opts) override;
  WorkPtr send(Tensors& tensors, int peer, int tag) override;
  WorkPtr recv(Tensors& tensors, int peer, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;
  WorkPtr barrier(const c10d::BarrierOptions& opts) override;

  const std::string getBackendName() const override { return "pycomm"; }
  c10::intrusive_ptr<c10d::Backend::Options> getBackendOptions() override { return options_; }
  c10::intrusive_ptr<BackendOptions> options() const { return options_; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return engine_->sequence(); }
  void setTimeout(std::chrono::milliseconds timeout) override;
  void abort() override { engine_->abort("abort() was called"); }
  void shutdown() override { close("destroy_process_group() was called", true); }
  c10d::ErrorType getError() override;

  // Ends the group with a reason that peers who still need this rank are told.
  void close(const std::string& reason, bool drain);
  // Closes every group of this process, which is about to end for this reason.
  static void close_all(const std::string& reason);
  Engine& engine() { return *engine_; }

 private:
  struct Call {
    c10d::OpType type;
    const char* title;
    bool async;
  };
  WorkPtr launch(const Call& call, std::vector<std::shared_ptr<Operation>> operations,
                 const Tensors& inputs, Tensors outputs);
  WorkPtr launch(const Call& call, OperationBuilder& builder, const Tensors& inputs,
                 Tensors outputs);
  std::shared_ptr<Operation> all_reduce_one(const at::Tensor& tensor, const c10d::ReduceOp& op,
                                            std::chrono::milliseconds timeout);
  std::shared_ptr<Operation> all_gather_one(const at::Tensor& output, const at::Tensor& input,
                                            std::chrono::milliseconds timeout);
  std::shared_ptr<Operation> reduce_scatter_one(const at::Tensor& output, const at::Tensor& input,
                                                const c10d::ReduceOp& op,
                                                std::chrono::milliseconds timeout);
  WorkPtr message(Collective collective, c10d::OpType type, const char* title, Tensors& tensors,
                  int peer, int tag);

  c10::intrusive_ptr<BackendOptions> options_;
  const std::shared_ptr<CallbackPool> callbacks_ = std::make_shared<CallbackPool>();
  std::unique_ptr<Engine> engine_;
};

}  // namespace pycomm
