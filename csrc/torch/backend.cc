// SPDX-License-Identifier: MIT
#include "torch/backend.h"

#include <ATen/record_function.h>
#include <pybind11/pybind11.h>

#include <mutex>
#include <set>

#include "engine/tuner.h"
#include "kernels/reduce.h"
#include "torch/comms_trace.h"
#include "torch/hierarchy.h"
#include "torch/joined_work.h"
#include "torch/store.h"

namespace pycomm {
namespace {

// The backends of this process that have not been destroyed. Itself never destroyed: the last
// backend may go after the statics.
struct Live {
  std::mutex mutex;
  std::set<Backend*> backends;
  static Live& get() {
    static Live* const live = new Live;
    return *live;
  }
};

}  // namespace

Backend::Backend(c10::intrusive_ptr<c10d::Store> store, int rank, int world_size,
                 c10::intrusive_ptr<BackendOptions> options)
    : c10d::Backend(rank, world_size),
      options_(std::move(options)),
      store_(std::move(store)),
      completions_(std::make_shared<Completions>(std::make_shared<CallbackPool>(), rank)) {
  PYCOMM_USAGE(world_size >= 1 && world_size <= kWorldSizeMax,
               "init_process_group: got world size ", world_size, ", expected 1 to ",
               kWorldSizeMax);
  PYCOMM_USAGE(rank >= 0 && rank < world_size, "init_process_group: got rank ", rank,
               ", expected 0 to ", world_size - 1);
  best_cpu_level();  // a wrong PYCOMM_CPU is said here, not at the first reduction
  check_wire(options_->engine.wire, options_->engine.algorithms);
  std::unique_ptr<Mesh> mesh;
  if (world_size == 1) {
    mesh = std::make_unique<Mesh>();
  } else {
    C10dStore adapted(store_, rank);
    auto mesh_options = options_->mesh;
    mesh_options.wire = text_of(options_->engine.wire, options_->engine.algorithms);
    if (rank == 0) mesh_options.figures = serialize(figures_of_this_process());
    mesh = Mesh::connect(adapted, rank, world_size, mesh_options);
  }
  auto engine_options = options_->engine;
  engine_options.timeout = options_->timeout;
  engine_options.group_name = options_->group_name;
  engine_options.on_failure = [hooks = abort_hooks_, rank] { hooks->run(rank); };
  engine_ = std::make_shared<Engine>(std::move(mesh), std::move(engine_options));
  engine_->settle_wire();
  init();
  const std::lock_guard lock(Live::get().mutex);
  Live::get().backends.insert(this);
}

Backend::~Backend() {
  {
    const std::lock_guard lock(Live::get().mutex);
    Live::get().backends.erase(this);
  }
  // Python may drop the last reference and hold the GIL, which the threads that are about to be
  // joined may need to free a tensor.
  if (Py_IsInitialized() && PyGILState_Check()) {
    const pybind11::gil_scoped_release release;
    close("its process group object was dropped", false);
    hierarchy_.reset();
  } else {
    close("its process group object was dropped", false);
  }
  // Works may hold the lane for longer than the engine lives.
  if (lane_) {
    const std::lock_guard lock(lane_->mutex());
    lane_->group().reset();
  }
  const std::lock_guard lock(abort_hooks_->mutex);
  abort_hooks_->by_id.clear();
}

void Backend::close_all(const std::string& reason) {
  std::vector<std::shared_ptr<CallbackPool>> pools;
  {
    const std::lock_guard lock(Live::get().mutex);
    for (Backend* backend : Live::get().backends) {
      backend->close(reason, false);
      pools.push_back(backend->completions_->shared_pool());
    }
  }
  // A callback that asked for the GIL once the interpreter is gone would end the process badly.
  const auto patience = Deadline::after(kCallbackPatience);
  for (const auto& pool : pools) pool->wait_idle(patience);
}

void Backend::close(const std::string& reason, bool drain) {
  engine_->shutdown(reason, drain);
  if (const auto hierarchy = hierarchy_if_any()) hierarchy->close(reason, drain);
}

void Backend::setTimeout(std::chrono::milliseconds timeout) {
  PYCOMM_USAGE(timeout.count() > 0, "set_timeout: got ", timeout.count(),
               " ms, expected a positive duration");
  options_->timeout = timeout;
  engine_->set_timeout(timeout);
}

c10d::ErrorType Backend::getError() {
  switch (engine_->failure().kind) {
    case FailureKind::none:
      return c10d::ErrorType::SUCCESS;
    case FailureKind::timeout:
      return c10d::ErrorType::TIMEOUT;
    case FailureKind::peer_failure:
      return c10d::ErrorType::REMOTE_ERROR;
    default:
      return c10d::ErrorType::COMM_ERROR;
  }
}

// The profiler's event and the hooks hang on a Work, so for them even synchronous calls make one.
bool Backend::needs_work() const {
  return at::hasCallbacks() || completions_->wanted() || coalescing_threads_;
}

c10::intrusive_ptr<Work> Backend::make_work(const Call& call, const Operation& first,
                                            const Tensors& inputs, Tensors outputs,
                                            std::optional<CommsTrace>& trace) {
  std::optional<std::vector<at::Tensor>> recorded;
  if (at::hasCallbacks()) {
    recorded = inputs;
    trace.emplace(TracedCall{getGroupUid(), getGroupDesc(), getRank(), getSize(),
                             call.title + sizeof("pycomm:") - 1,
                             static_cast<int64_t>(engine_->sequence()) + 1, is_message(first),
                             call.async, call.input_splits, call.output_splits},
                  inputs, outputs);
  }
  return c10::make_intrusive<Work>(completions_, getRank(), getSize(), call.type, call.title,
                                   recorded, std::move(outputs));
}

Backend::WorkPtr Backend::launch(const Call& call,
                                 std::vector<std::shared_ptr<Operation>> operations,
                                 const Tensors& inputs, Tensors outputs) {
  if (operations.front()->on_device) {
    return launch_on_device(call, std::move(operations), inputs, std::move(outputs));
  }
  if (!call.async && !needs_work()) {
    for (const auto& operation : operations) engine_->run(operation);
    return nullptr;
  }
  std::optional<CommsTrace> trace;
  auto work = make_work(call, *operations.front(), inputs, std::move(outputs), trace);
  if (inputs.size()) work->hold(inputs);
  Work::submit(work, engine_, std::move(operations));
  if (coalescing_threads_) join_if_coalescing(work);
  if (call.async) return work;
  work->wait(kNoTimeout);
  return nullptr;
}

Backend::WorkPtr Backend::launch(const Call& call, OperationBuilder& builder, const Tensors& inputs,
                                 Tensors outputs) {
  std::vector<std::shared_ptr<Operation>> operations;
  operations.push_back(builder.take(getRank()));
  return launch(call, std::move(operations), inputs, std::move(outputs));
}

// A list left behind is dropped: torch does not end what an exception has interrupted.
void Backend::startCoalescing() {
  const std::lock_guard lock(coalescing_mutex_);
  coalescing_[std::this_thread::get_id()] = {};
  coalescing_threads_ = coalescing_.size();
}

Backend::WorkPtr Backend::endCoalescing() {
  Coalesced mine;
  {
    const std::lock_guard lock(coalescing_mutex_);
    auto found = coalescing_.extract(std::this_thread::get_id());
    PYCOMM_USAGE(found, "end_coalescing: this thread has not called start_coalescing");
    coalescing_threads_ = coalescing_.size();
    mine = std::move(found.mapped());
  }
  for (const auto& [place, call] : mine.late) mine.works[place] = call();
  return c10::make_intrusive<JoinedWork>(getRank(), std::move(mine.works));
}

void Backend::join_if_coalescing(const WorkPtr& work) {
  const std::lock_guard lock(coalescing_mutex_);
  const auto mine = coalescing_.find(std::this_thread::get_id());
  if (mine != coalescing_.end()) mine->second.works.push_back(work);
}

bool Backend::late_if_coalescing(const std::function<WorkPtr()>& call) {
  const std::lock_guard lock(coalescing_mutex_);
  const auto mine = coalescing_.find(std::this_thread::get_id());
  if (mine == coalescing_.end()) return false;
  auto& [works, late] = mine->second;
  late.emplace(works.size(), call);
  works.emplace_back();
  return true;
}

// A call that is refused ends the list as well, so that works do not gather in it for ever.
void Backend::drop_coalescing() {
  if (!coalescing_threads_) return;
  const std::lock_guard lock(coalescing_mutex_);
  coalescing_.erase(std::this_thread::get_id());
  coalescing_threads_ = coalescing_.size();
}

Backend::WorkPtr Backend::message(Collective collective, c10d::OpType type, const char* title,
                                  Tensors& tensors, int peer, int tag) {
  PYCOMM_USAGE(tensors.size() == 1, name_of(collective), ": got ", tensors.size(),
               " tensors, expected one; send them one by one, or torch.cat() them (requires "
               "non-empty tensor "
               "list of one tensor)");
  check_tensor(collective, tensors[0]);
  PYCOMM_USAGE(tag >= 0, name_of(collective), ": got tag ", tag,
               ", expected 0 or more; choose another tag");
  OperationBuilder builder(collective, c10d::kUnsetTimeout);
  builder.set_peer(peer, tag);
  const bool sends = collective == Collective::send;
  builder.add(tensors[0], sends, !sends);
  std::vector<std::shared_ptr<Operation>> operations{builder.take(getRank())};
  if (!sends && operations.front()->on_device && coalescing_threads_) {
    const auto call = [=, this] {
      return launch({type, title, true}, operations, tensors, tensors);
    };
    if (late_if_coalescing(call)) return nullptr;
  }
  return launch({type, title, true}, std::move(operations), tensors, tensors);
}

Backend::WorkPtr Backend::send(Tensors& tensors, int peer, int tag) {
  const RefusalGuard guard(*this);
  check_peer(Collective::send, peer, getRank(), getSize());
  return message(Collective::send, c10d::OpType::SEND, "pycomm:send", tensors, peer, tag);
}

Backend::WorkPtr Backend::recv(Tensors& tensors, int peer, int tag) {
  const RefusalGuard guard(*this);
  check_peer(Collective::recv, peer, getRank(), getSize());
  return message(Collective::recv, c10d::OpType::RECV, "pycomm:recv", tensors, peer, tag);
}

Backend::WorkPtr Backend::recvAnysource(Tensors& tensors, int tag) {
  const RefusalGuard guard(*this);
  PYCOMM_USAGE(getSize() > 1, "recv: this group has one rank, so nobody can send to it");
  return message(Collective::recv, c10d::OpType::RECVANYSOURCE, "pycomm:recvAnySource", tensors,
                 kAnySource, tag);
}

Backend::WorkPtr Backend::barrier(const c10d::BarrierOptions& opts) {
  const SequenceSlot slot(*this);
  OperationBuilder builder(Collective::barrier, opts.timeout);
  std::vector<std::shared_ptr<Operation>> operations{builder.take(getRank())};
  // torch does not say whether it means the host or a device, so it is for both.
  if (const auto lane = lane_if_any()) {
    const std::lock_guard lock(lane->mutex());
    lane->gate(*operations.front());
  }
  return launch({c10d::OpType::BARRIER, "pycomm:barrier", opts.asyncOp}, std::move(operations), {},
                {});
}

void Backend::monitoredBarrier(const c10d::BarrierOptions& opts, bool wait_all_ranks) {
  const bool given = opts.timeout.count() >= 0 && opts.timeout != c10d::kUnsetTimeout;
  const auto timeout = given ? opts.timeout : options_->timeout;
  // Callbacks may call collectives. Half of the time, so that a rank whose callback does not return
  // is seen to have come.
  engine_->let_callbacks_run(Deadline::after(timeout / 2));
  const std::lock_guard lock(monitored_mutex_);
  // Numbered after the collective before it: a rank that missed one is in step again later.
  const auto sequence = engine_->sequence();
  monitored_count_ = sequence == monitored_at_ ? monitored_count_ + 1 : 0;
  monitored_at_ = sequence;
  MonitoredBarrier barrier{
      .store = monitored_last_ ? monitored_last_->store : connection_of_own(store_),
      .round = str("pycomm/monitored_barrier/", sequence, ".", monitored_count_, "/"),
      .rank = getRank(),
      .world_size = getSize(),
      .timeout = timeout,
      .wait_all_ranks = wait_all_ranks,
      .group_state = [this] { return engine_->failure(); }};
  const auto before = std::exchange(monitored_last_, std::nullopt);
  barrier.run();
  // All have left the one before, since all have come to this one.
  if (before && getRank() == 0) before->clean();
  monitored_last_ = std::move(barrier);
}

at::Tensor Backend::allocateTensor(long count, at::TensorOptions options) {
  PYCOMM_USAGE(options.device().is_cpu(), "allocate_tensor: got device ", options.device(),
               ", expected cpu");
  return arena_tensor(count, options);
}

}  // namespace pycomm
