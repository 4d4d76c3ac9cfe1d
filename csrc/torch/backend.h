// SPDX-License-Identifier: MIT
// The c10d::Backend: checks tensors, makes operations of them, hands them to the engine. Nothing
// else.
//
// A synchronous call (asyncOp == false) runs on the caller's thread and returns no Work; any other
// returns a Work at once. Calls may come from any thread; their order is the order in which they
// take the engine's lock, and must be the same on all ranks. Called without the GIL.
#pragma once

#include <torch/version.h>

#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "engine/engine.h"
#include "torch/arena_allocator.h"
#include "torch/comms_trace.h"
#include "torch/completions.h"
#include "torch/device_lane.h"
#include "torch/monitored_barrier.h"
#include "torch/tensors.h"
#include "torch/work.h"

namespace pycomm {

// What pycomm/options.py fills in.
struct BackendOptions final : c10d::Backend::Options {
  BackendOptions() : c10d::Backend::Options("pycomm") {}
#ifdef C10D_BACKEND_HAS_RECONFIGURE  // torch 2.14
  c10::intrusive_ptr<c10d::Backend::Options> clone() const override {
    return c10::make_intrusive<BackendOptions>(*this);
  }
#endif
  MeshOptions mesh;
  EngineOptions engine;
  // Work::wait() of an operation on a device returns when it is over, and so does a synchronous
  // call.
  bool blocking_wait = false;
  // How ranks work together on their devices: 'H' or 'S', or 0 for what fits, see
  // engine/device_mode.h.
  char device_mode = 0;
  // The backend that carries legs between hosts, see torch/hierarchy.h; empty: this one alone.
  std::string inter;
};

class Backend;
class Hierarchy;

// Whom a user wants called when the group fails; the engine may outlive the backend for a moment.
struct AbortHooks {
  std::mutex mutex;
  std::map<int64_t, std::function<void()>> by_id;
  void run(int rank);
};

// Stands at the top of every message: when the call is refused, what this thread coalesces ends.
class RefusalGuard {
 public:
  explicit RefusalGuard(Backend& backend) : backend_(backend) {}
  ~RefusalGuard();
  RefusalGuard(const RefusalGuard&) = delete;
  RefusalGuard& operator=(const RefusalGuard&) = delete;

 protected:
  bool refused() const { return std::uncaught_exceptions() > exceptions_; }
  Backend& backend_;

 private:
  const int exceptions_ = std::uncaught_exceptions();
};

// Stands at the top of every collective. When the call is refused, the collective still takes its
// number, see Engine::skip().
class SequenceSlot : public RefusalGuard {
 public:
  using RefusalGuard::RefusalGuard;
  ~SequenceSlot();
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
  using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
  using StorePtr = c10::intrusive_ptr<c10d::Store>;
  using OptionsPtr = c10::intrusive_ptr<c10d::Backend::Options>;

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override;
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& opts) override;
  // In place on a sparse COO tensor; allreduce() comes here with one, too.
  WorkPtr allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& opts) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override;
  WorkPtr allgather(TensorLists& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& opts) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& opts) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& opts) override;
  WorkPtr allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& opts) override;
  WorkPtr gather(TensorLists& outputs, Tensors& inputs, const c10d::GatherOptions& opts) override;
#ifdef C10D_BACKEND_HAS_RECONFIGURE  // torch 2.14
  WorkPtr gather_single(at::Tensor& output, at::Tensor& input,
                        const c10d::GatherOptions& opts) override;
#endif
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

  // Blocking; see torch/monitored_barrier.h.
  void monitoredBarrier(const c10d::BarrierOptions& opts, bool wait_all_ranks) override;

  // Between these two the calls of this thread go out as ever; the Work of the second stands for
  // all of them. But receives on a device go out at the second, behind all that is sent, and return
  // null: a stream that waits may hold back others, with which it shares a queue of the hardware.
  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override;
  WorkPtr endCoalescing() override;

  // Groups made from this one, see torch/groups.cc. Collective over the new group's ranks.
  bool supportsSplitting() const override { return true; }
  BackendPtr split(const StorePtr& store, const std::vector<int>& ranks,
                   const OptionsPtr& opts) override;
  BackendPtr merge(const StorePtr& store, const OptionsPtr& opts, const int& rank,
                   const int& world_size) override;
  bool supportsShrinking() const override { return true; }
  BackendPtr shrink(const std::vector<int64_t>& ranks_to_exclude, int shrink_flags,
                    const OptionsPtr& opts) override;
  uint64_t split_count() const { return split_count_; }

  // Called without the GIL by a thread of the callback pool, in the order in which works end.
  void registerOnCompletionHook(
      std::function<void(std::shared_ptr<c10d::WorkInfo>)>&& hook) override;
  void waitForPendingWorks() override { completions_->wait(); }
  void enableCollectivesTiming() override {}  // every Work is timed
#ifdef C10D_BACKEND_HAS_HOOKS                 // torch 2.14
  void registerAbortHook(int64_t id, c10d::AbortHook hook) override;
  void unregisterAbortHook(int64_t id) override;
#endif
#if TORCH_VERSION_MINOR >= 15
  bool supportsAbortHooks() const override { return true; }
  bool supportsCompletionHooks() const override { return true; }
  void registerCompletionHook(int64_t id, c10d::CompletionHook hook) override;
  void unregisterCompletionHook(int64_t id) override { completions_->remove_hook(id); }
#endif

  void eagerConnectSingleDevice(at::Device device) override;
  // "S: 4 ranks share GPU-...", and what it takes; empty before the first collective on a device.
  std::string device_mode();

  // CPU memory that peers of this host can map, see torch/arena_allocator.h.
  bool supportsTensorAlloc(c10::DeviceIndex device) override { return device < 0; }
  at::Tensor allocateTensor(long count, at::TensorOptions options) override;
  std::shared_ptr<c10::Allocator> getMemAllocator() override { return arena_allocator(); }

  const std::string getBackendName() const override { return "pycomm"; }
  c10::intrusive_ptr<c10d::Backend::Options> getBackendOptions() override { return options_; }
  c10::intrusive_ptr<BackendOptions> options() const { return options_; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return engine_->sequence(); }
  void setTimeout(std::chrono::milliseconds timeout) override;
  void abort() override { engine_->abort("abort() was called"); }
  void shutdown() override { close("destroy_process_group() was called", true); }
  c10d::ErrorType getError() override;

  // When `other` fails this group is aborted: it is of no use alone. Local.
  void fails_with(Backend& other);
  // Ends the group with a reason that peers who still need this rank are told.
  void close(const std::string& reason, bool drain);
  // Closes every group of this process, which is about to end for this reason.
  static void close_all(const std::string& reason);
  Engine& engine() { return *engine_; }
  void drop_coalescing();

 private:
  struct Call {
    c10d::OpType type;
    const char* title;  // "pycomm:all_reduce"
    bool async;
    std::vector<int64_t> input_splits = {}, output_splits = {};  // for traces
  };
  WorkPtr launch(const Call& call, std::vector<std::shared_ptr<Operation>> operations,
                 const Tensors& inputs, Tensors outputs);
  WorkPtr launch(const Call& call, OperationBuilder& builder, const Tensors& inputs,
                 Tensors outputs);
  // On tensors of a device: device_calls.cc.
  WorkPtr launch_on_device(const Call& call, std::vector<std::shared_ptr<Operation>> operations,
                           const Tensors& inputs, Tensors outputs);
  bool needs_work() const;
  c10::intrusive_ptr<Work> make_work(const Call& call, const Operation& first,
                                     const Tensors& inputs, Tensors outputs,
                                     std::optional<CommsTrace>& trace);
  std::shared_ptr<DeviceLane> lane_for(const std::string& call, c10::Device where);
  std::shared_ptr<DeviceLane> lane_if_any();
  // What `operations` go through where ranks are on several hosts, or null; hierarchy_connect.cc.
  std::shared_ptr<Hierarchy> hierarchy_for(
      const std::vector<std::shared_ptr<Operation>>& operations, DeviceLane& lane);
  std::shared_ptr<Hierarchy> connect_hierarchy(
      const std::vector<std::shared_ptr<Operation>>& operations, DeviceLane& lane);
  std::shared_ptr<Hierarchy> hierarchy_if_any();
  void connect_halves(Hierarchy& hierarchy, c10::Device where);
  void join_if_coalescing(const WorkPtr& work);
  bool late_if_coalescing(const std::function<WorkPtr()>& call);
  BackendPtr make_child(const StorePtr& store, int rank, int world_size, const OptionsPtr& opts);
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
  const StorePtr store_;
  const std::shared_ptr<Completions> completions_;

  std::mutex coalescing_mutex_;
  struct Coalesced {
    std::vector<WorkPtr> works;  // in the order of the calls
    // Calls that go out at the end, by their place among the works.
    std::map<size_t, std::function<WorkPtr()>> late;
  };
  std::map<std::thread::id, Coalesced> coalescing_;  // by the thread that started it
  std::atomic<size_t> coalescing_threads_{0};

  std::mutex lane_mutex_;
  std::shared_ptr<DeviceLane> lane_;  // of the one device of this rank in this group
  std::shared_ptr<Hierarchy> hierarchy_;
  bool hierarchy_decided_ = false;
  std::mutex hierarchy_connect_mutex_;  // outside lane_mutex_

  std::mutex monitored_mutex_;
  uint64_t monitored_at_ = 0;  // the sequence number before the last monitored barrier
  uint64_t monitored_count_ = 0;
  std::optional<MonitoredBarrier> monitored_last_;

  std::mutex groups_mutex_;
  std::optional<c10::weak_intrusive_ptr<c10d::Backend>> last_split_;
  std::atomic<uint64_t> split_count_{0};
  uint64_t shrink_count_ = 0;

  const std::shared_ptr<AbortHooks> abort_hooks_ = std::make_shared<AbortHooks>();
  // Last: its threads use the rest. Works that somebody waits for hold it, too.
  std::shared_ptr<Engine> engine_;
};

inline RefusalGuard::~RefusalGuard() {
  if (refused()) backend_.drop_coalescing();
}

inline SequenceSlot::~SequenceSlot() {
  if (refused()) backend_.engine().skip();
}

}  // namespace pycomm
