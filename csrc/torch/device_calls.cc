// SPDX-License-Identifier: MIT
// The Backend's calls on tensors of a device. See backend.h and device_lane.h.
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "base/limits.h"
#include "base/log.h"
#include "engine/device_group.h"
#include "torch/backend.h"
#include "torch/device_registry.h"
#include "torch/hierarchy_call.h"

namespace pycomm {
namespace {

using Tensors = Backend::Tensors;

const DeviceTensors& on_device(const std::shared_ptr<Operation>& operation) {
  return static_cast<const DeviceTensors&>(*operation);
}

using Operations = PreparedCall::Operations;

// Through the host. What was not put on a stream in the end counts as done.
class StagedCall final : public PreparedCall {
 public:
  StagedCall(HostStaging& staging, const Operations& wanted) : staging_(staging) {
    try {
      for (const auto& one : wanted) {
        auto pieces = staging.prepare(on_device(one));
        for (auto& piece : pieces) pieces_.push_back(std::move(piece));
      }
    } catch (...) {
      staging_.abandon(pieces_, 0);
      throw;
    }
  }
  ~StagedCall() override {
    if (!enqueued_) staging_.abandon(pieces_, 0);
  }
  Operations operations() const override {
    Operations all;
    for (const auto& piece : pieces_) all.push_back(piece.operation);
    return all;
  }
  std::function<bool()> passed() const override {
    return [last = pieces_.back().use] { return last.over(); };
  }
  Failure enqueue(void* stream) override {
    enqueued_ = true;
    return staging_.enqueue(pieces_, stream);
  }

 private:
  HostStaging& staging_;
  HostStaging::Pieces pieces_;
  bool enqueued_ = false;
};

// By streams and words alone.
class GroupCall final : public PreparedCall {
 public:
  GroupCall(DeviceGroup& group, const Operations& wanted, bool captured) : group_(group) {
    for (const auto& one : wanted) calls_.push_back(group.prepare(*one, captured));
  }
  Operations operations() const override {
    Operations all;
    for (const auto& call : calls_) {
      if (call.operation) all.push_back(call.operation);
    }
    return all;
  }
  std::function<bool()> passed() const override { return calls_.back().passed; }
  Failure enqueue(void* stream) override {
    for (const auto& call : calls_) {
      if (Failure failure = group_.enqueue(call, stream)) return failure;
    }
    return {};
  }

 private:
  DeviceGroup& group_;
  std::vector<DeviceGroup::Call> calls_;
};

// Once in the life of a process. Frameworks set it to 1 so that kernels begin in the order of the
// calls.
void warn_of_few_connections(int rank) {
  const char* const text = std::getenv("CUDA_DEVICE_MAX_CONNECTIONS");
  const int connections = text ? std::atoi(text) : kDeviceConnections;
  static std::atomic_flag warned;
  if (connections >= kDeviceConnections || connections < 1 || warned.test_and_set()) return;
  log(LogLevel::warning, rank,
      str("CUDA_DEVICE_MAX_CONNECTIONS=", text,
          ": streams share so few queues of the GPU that a "
          "receive may hold back what is sent after it; send first, put both into one "
          "batch_isend_irecv(), or set it to ",
          kDeviceConnections));
}

// The ranks' devices connect at the first collective on one, which all ranks come to. Under the
// lane's lock.
DeviceGroup* group_for(DeviceLane& lane, Engine& engine, const std::string& call, bool captured,
                       const BackendOptions& options) {
  if (engine.mesh().world_size() == 1) return nullptr;
  if (!lane.group()) {
    PYCOMM_USAGE(!captured, call,
                 ": a graph is being captured, but the group has not worked on its devices yet; "
                 "call a collective on a tensor there before the capture");
    DeviceGroupOptions wanted;
    wanted.mode = options.device_mode;
    const auto& chosen = options.engine.algorithms;
    if (chosen.contains(Collective::all_reduce)) {
      wanted.all_reduce = chosen.at(Collective::all_reduce);
    }
    lane.group() = DeviceGroup::connect(engine, lane.device(), kernels_of(lane.where()), wanted);
  }
  return lane.group().get();
}

// Whether streams and words alone carry them out; alike on all ranks.
bool served(const DeviceGroup* group, const Operations& operations) {
  return group && std::all_of(operations.begin(), operations.end(), [&](const auto& one) {
           return group->serves(*one) && !on_device(one).factor;
         });
}

std::unique_ptr<PreparedCall> prepared(DeviceLane& lane, DeviceGroup* group,
                                       const Operations& operations, bool captured) {
  if (group) return std::make_unique<GroupCall>(*group, operations, captured);
  return std::make_unique<StagedCall>(lane.staging(), operations);
}

// Results that go to tensors which are not contiguous, by torch's operators behind `stream`.
// Returns the stream that ends with them.
void* unpack(DeviceLane& lane, const Operations& operations, void* stream, void* current) {
  const bool any = std::any_of(operations.begin(), operations.end(),
                               [](const auto& one) { return !on_device(one).unpacked.empty(); });
  if (!any) return stream;
  const auto torch_stream = stream == current ? lane.current() : lane.behind(stream);
  const c10::StreamGuard guard(torch_stream);
  const c10::impl::VirtualGuardImpl impl(lane.where().type());
  for (const auto& operation : operations) {
    on_device(operation).unpack();
    for (const auto& one : on_device(operation).unpacked) {
      impl.recordDataPtrOnStream(one.tensor.storage().data_ptr(), torch_stream);
      impl.recordDataPtrOnStream(one.temporary.storage().data_ptr(), torch_stream);
    }
  }
  return impl.getStreamNativeHandle(torch_stream);
}

Tensors tensors_of(const Operations& operations, const Tensors& inputs, const Tensors& outputs) {
  Tensors all = inputs;
  all.insert(all.end(), outputs.begin(), outputs.end());
  for (const auto& operation : operations) {
    for (const auto& one : on_device(operation).packed) all.push_back(one.temporary);
    for (const auto& one : on_device(operation).unpacked) all.push_back(one.temporary);
  }
  return all;
}

}  // namespace

std::shared_ptr<DeviceLane> Backend::lane_for(const std::string& call, c10::Device where) {
  const std::lock_guard lock(lane_mutex_);
  const auto bound = getBoundDeviceId();
  const bool wrong = lane_ ? lane_->where() != where : bound && *bound != where;
  PYCOMM_USAGE(!wrong, call, ": got a tensor on ", where, ", but rank ", getRank(), " is on ",
               lane_ ? lane_->where() : *bound,
               " in this group, expected one device for each rank; set the device of the process "
               "first, such as torch.cuda.set_device(local_rank)");
  if (lane_) return lane_;
  Device* const device = served_device(where);
  PYCOMM_USAGE(device, call, ": there is no ", where, " that pycomm can work on");
  warn_of_few_connections(getRank());
  return lane_ = std::make_shared<DeviceLane>(where, *device, getSize());
}

// A group that is bound to a device, or has worked on one.
std::shared_ptr<DeviceLane> Backend::lane_if_any() {
  const auto bound = getBoundDeviceId();
  if (bound && served_device(*bound)) return lane_for("barrier", *bound);
  const std::lock_guard lock(lane_mutex_);
  return lane_;
}

void Backend::eagerConnectSingleDevice(at::Device device) {
  if (served_device(device)) (void)lane_for("init_process_group", device);
}

std::string Backend::device_mode() {
  std::shared_ptr<DeviceLane> lane;
  {
    const std::lock_guard lock(lane_mutex_);
    lane = lane_;
  }
  if (!lane) return {};
  const auto hierarchy = hierarchy_if_any();
  const std::lock_guard lock(lane->mutex());
  auto text = lane->group() ? lane->group()->describe() : std::string();
  if (hierarchy) text += (text.empty() ? "" : "; ") + hierarchy->describe();
  return text;
}

Backend::WorkPtr Backend::launch_on_device(const Call& call,
                                           std::vector<std::shared_ptr<Operation>> operations,
                                           const Tensors& inputs, Tensors outputs) {
  const DeviceTensors& first = on_device(operations.front());
  const std::string name(name_of(first.collective));
  for (const auto& one : operations) {
    PYCOMM_USAGE(one->on_device && on_device(one).where == first.where, name,
                 ": got tensors of several devices, expected one device");
  }
  engine_->refuse_fork(first);
  const auto lane = lane_for(name, first.where);
  const bool message = is_message(first);
  const auto hierarchy = hierarchy_for(operations, *lane);
  const bool sends = first.collective == Collective::send;
  Tensors over;  // dropped when the lock is not held
  std::optional<CommsTrace> trace;
  c10::intrusive_ptr<Work> work;
  {
    const std::lock_guard lock(lane->mutex());
    over = lane->sweep();
    void* const current = lane->current_native();
    const uint64_t capture = lane->capture_of(current);
    DeviceGroup* group = nullptr;
    if (!message && !hierarchy) {
      group = group_for(*lane, *engine_, name, capture != 0, *options_);
    }
    if (!served(group, operations)) group = nullptr;
    if (!group) lane->refuse_capture(first.collective, current);
    void* const stream = message       ? lane->message_stream(sends, first.peer)
                         : !call.async ? current
                         : hierarchy   ? hierarchy->native_stream()
                                       : lane->own_stream();
    std::unique_ptr<PreparedCall> ready;  // outlives the abort, until which nothing may go on
    try {
      if (hierarchy) {
        ready = std::make_unique<HierarchyCall>(hierarchy, *engine_, *lane, operations);
      } else {
        ready = prepared(*lane, group, operations, capture != 0);
      }
      lane->order(stream, current);
      if (!message) lane->after_collectives(stream, capture);
      const auto submitted = ready->operations();
      if (call.async || options_->blocking_wait || needs_work()) {
        work = make_work(call, first, inputs, outputs, trace);
        work->ends_on_device({lane, lane->make_event(), ready->passed(),
                              options_->blocking_wait && !capture, current});
        if (capture) {
          work->captured(engine_, std::make_shared<Operation>());
        } else {
          Work::submit(work, engine_, submitted);
        }
      } else {
        for (const auto& operation : submitted) engine_->submit(operation);
      }
      uint64_t kept = 0;
      if (stream != current && !capture) {
        kept = lane->keep(tensors_of(operations, inputs, outputs), ready->passed());
      }
      if (const auto failure = ready->enqueue(stream)) throw CommError(failure);
      void* const end = sends ? stream : unpack(*lane, operations, stream, current);
      if (work) work->ended_on(end, kept);
      if (!message) lane->ends_collective(end, capture);
    } catch (const std::exception& error) {
      // Peers' streams wait for what has been announced, and would take the next call for it; what
      // has been submitted would wait for the stream.
      engine_->abort(error.what());
      throw;
    }
  }
  if (work && coalescing_threads_) join_if_coalescing(work);
  if (work && options_->blocking_wait && !call.async) work->wait(kNoTimeout);
  return call.async ? work : nullptr;
}

}  // namespace pycomm
