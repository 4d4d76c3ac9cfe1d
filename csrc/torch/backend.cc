// SPDX-License-Identifier: MIT
#include "torch/backend.h"

#include <ATen/record_function.h>
#include <pybind11/pybind11.h>

#include <mutex>
#include <set>

#include "kernels/reduce.h"
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

void check_peer(Collective collective, int peer, int rank, int world_size) {
  PYCOMM_USAGE(peer >= 0 && peer < world_size, name_of(collective), ": got peer ", peer,
               ", expected a rank of the group, 0 to ", world_size - 1,
               "; name another rank, counted within this group");
  PYCOMM_USAGE(peer != rank, name_of(collective), ": got peer ", peer,
               ", which is this rank itself, expected another rank; copy the tensor instead");
}

}  // namespace

Backend::Backend(c10::intrusive_ptr<c10d::Store> store, int rank, int world_size,
                 c10::intrusive_ptr<BackendOptions> options)
    : c10d::Backend(rank, world_size), options_(std::move(options)) {
  PYCOMM_USAGE(world_size >= 1 && world_size <= kWorldSizeMax,
               "init_process_group: got world size ", world_size, ", expected 1 to ",
               kWorldSizeMax);
  PYCOMM_USAGE(rank >= 0 && rank < world_size, "init_process_group: got rank ", rank,
               ", expected 0 to ", world_size - 1);
  best_cpu_level();  // a wrong PYCOMM_CPU is said here, not at the first reduction
  std::unique_ptr<Mesh> mesh;
  if (world_size == 1) {
    mesh = std::make_unique<Mesh>();
  } else {
    C10dStore adapted(std::move(store), rank);
    mesh = Mesh::connect(adapted, rank, world_size, options_->mesh);
  }
  auto engine_options = options_->engine;
  engine_options.timeout = options_->timeout;
  engine_options.group_name = options_->group_name;
  engine_ = std::make_unique<Engine>(std::move(mesh), std::move(engine_options));
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
  } else {
    close("its process group object was dropped", false);
  }
}

void Backend::close_all(const std::string& reason) {
  std::vector<std::shared_ptr<CallbackPool>> pools;
  {
    const std::lock_guard lock(Live::get().mutex);
    for (Backend* backend : Live::get().backends) {
      backend->close(reason, false);
      pools.push_back(backend->callbacks_);
    }
  }
  // A callback that asked for the GIL once the interpreter is gone would end the process badly.
  const auto patience = Deadline::after(kCallbackPatience);
  for (const auto& pool : pools) pool->wait_idle(patience);
}

void Backend::close(const std::string& reason, bool drain) { engine_->shutdown(reason, drain); }

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

Backend::WorkPtr Backend::launch(const Call& call,
                                 std::vector<std::shared_ptr<Operation>> operations,
                                 const Tensors& inputs, Tensors outputs) {
  // The profiler's event hangs on a Work, so while it records even synchronous calls make one.
  if (!call.async && !at::hasCallbacks()) {
    for (const auto& operation : operations) engine_->run(operation);
    return nullptr;
  }
  std::optional<std::vector<at::Tensor>> recorded;
  if (at::hasCallbacks()) recorded = inputs;
  auto work = c10::make_intrusive<Work>(callbacks_, getRank(), getSize(), call.type, call.title,
                                        recorded, std::move(outputs));
  if (inputs.size()) work->hold(inputs);
  Work::submit(work, *engine_, std::move(operations));
  if (!call.async) {
    work->wait(kNoTimeout);
    return nullptr;
  }
  return work;
}

Backend::WorkPtr Backend::launch(const Call& call, OperationBuilder& builder, const Tensors& inputs,
                                 Tensors outputs) {
  std::vector<std::shared_ptr<Operation>> operations;
  operations.push_back(builder.take(getRank()));
  return launch(call, std::move(operations), inputs, std::move(outputs));
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
  return launch({type, title, true}, std::move(operations), tensors, tensors);
}

Backend::WorkPtr Backend::send(Tensors& tensors, int peer, int tag) {
  check_peer(Collective::send, peer, getRank(), getSize());
  return message(Collective::send, c10d::OpType::SEND, "pycomm:send", tensors, peer, tag);
}

Backend::WorkPtr Backend::recv(Tensors& tensors, int peer, int tag) {
  check_peer(Collective::recv, peer, getRank(), getSize());
  return message(Collective::recv, c10d::OpType::RECV, "pycomm:recv", tensors, peer, tag);
}

Backend::WorkPtr Backend::recvAnysource(Tensors& tensors, int tag) {
  PYCOMM_USAGE(getSize() > 1, "recv: this group has one rank, so nobody can send to it");
  return message(Collective::recv, c10d::OpType::RECVANYSOURCE, "pycomm:recvAnySource", tensors,
                 kAnySource, tag);
}

Backend::WorkPtr Backend::barrier(const c10d::BarrierOptions& opts) {
  const SequenceSlot slot(*engine_);
  OperationBuilder builder(Collective::barrier, opts.timeout);
  return launch({c10d::OpType::BARRIER, "pycomm:barrier", opts.asyncOp}, builder, {}, {});
}

}  // namespace pycomm
