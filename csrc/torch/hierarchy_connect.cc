// SPDX-License-Identifier: MIT
// How a Hierarchy comes to be: at the group's first call that can go through one, by all ranks.
#include <pybind11/chrono.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "base/limits.h"
#include "base/log.h"
#include "torch/backend.h"
#include "torch/hierarchy_call.h"
#include "torch/store.h"

namespace py = pybind11;

namespace pycomm {
namespace {

// A hook's id that no user has: those of torch count from 0.
constexpr int64_t kEndsWithTheGroup = -1;

// pycomm/inter.py.
Backend::BackendPtr make_with_torch(const std::string& name, const Backend::StorePtr& store,
                                    int rank, int world_size, std::chrono::milliseconds timeout,
                                    const std::string& group, c10::Device where) {
  const py::gil_scoped_acquire gil;
  try {
    return py::module_::import("pycomm.inter")
        .attr("make")(name, store, rank, world_size, timeout, group, where)
        .cast<Backend::BackendPtr>();
  } catch (py::error_already_set& error) {
    throw std::runtime_error(error.what());
  }
}

bool even(const HostLayout& layout) {
  return std::all_of(layout.hosts.begin(), layout.hosts.end(),
                     [&](const auto& host) { return host.size() == layout.hosts[0].size(); });
}

std::string sizes_of(const HostLayout& layout) {
  std::string text;
  for (const auto& host : layout.hosts) text += str(text.empty() ? "" : ", ", host.size());
  return text;
}

}  // namespace

std::shared_ptr<Hierarchy> Backend::hierarchy_if_any() {
  const std::lock_guard lock(lane_mutex_);
  return hierarchy_;
}

std::shared_ptr<Hierarchy> Backend::hierarchy_for(
    const std::vector<std::shared_ptr<Operation>>& operations, DeviceLane& lane) {
  const auto served = [](const auto& one) {
    return Hierarchy::serves(static_cast<const DeviceTensors&>(*one));
  };
  if (options_->inter.empty() || !std::all_of(operations.begin(), operations.end(), served)) {
    return nullptr;
  }
  const std::lock_guard connecting(hierarchy_connect_mutex_);
  if (hierarchy_decided_) return hierarchy_if_any();
  auto made = connect_hierarchy(operations, lane);
  hierarchy_decided_ = true;
  return made;
}

// One group inherits the setting from another, and environments hold for all groups: where there is
// nothing to hand on, the group works as it would without.
std::shared_ptr<Hierarchy> Backend::connect_hierarchy(
    const std::vector<std::shared_ptr<Operation>>& operations, DeviceLane& lane) {
  const auto& hosts = engine_->programs().hosts();
  if (hosts.size() < 2) return nullptr;
  auto layout = make_host_layout(hosts, getRank());
  if (!even(layout)) {
    if (getRank() == 0) {
      log(LogLevel::warning, 0,
          str("inter=", options_->inter, ": the hosts of this group have ", sizes_of(layout),
              " ranks, but a group between hosts takes one rank of each; nothing is handed on. "
              "Start as many ranks on every host"));
    }
    return nullptr;
  }
  {
    const std::lock_guard lock(lane.mutex());
    lane.refuse_capture(operations.front()->collective, lane.current_native());
  }
  // All ranks come here before any waits for another in a half that could not say who is missing.
  engine_->run(make_announcement(operations, getRank(), getSize()));
  const auto made = std::make_shared<Hierarchy>(std::move(layout), options_->inter, lane.where(),
                                                lane.device(), completions_->shared_pool());
  {
    const std::lock_guard lock(lane_mutex_);
    hierarchy_ = made;
  }
  {
    const std::lock_guard lock(abort_hooks_->mutex);
    abort_hooks_->by_id[kEndsWithTheGroup] = [weak = std::weak_ptr(made)] {
      if (const auto hierarchy = weak.lock()) hierarchy->abort("the group that it serves failed");
    };
  }
  OperationBuilder meeting(Collective::barrier, c10d::kUnsetTimeout);
  const auto all_there = meeting.take(getRank());
  try {
    connect_halves(*made, lane.where());
  } catch (const CommError& error) {
    const auto echo = Deadline::after(kAnswerPatience);
    while (!engine_->failure() && !echo.expired()) std::this_thread::sleep_for(kReadyNap);
    engine_->refuse(*all_there, error.failure());
  }
  engine_->run(all_there);
  log(LogLevel::info, getRank(), made->describe());
  return made;
}

void Backend::connect_halves(Hierarchy& hierarchy, c10::Device where) {
  const auto& layout = hierarchy.layout();
  const int mates = static_cast<int>(layout.mates().size());
  const auto store = connection_of_own(store_);
  const auto child = [&](const std::string& name, int rank, int world_size) {
    auto options = c10::make_intrusive<BackendOptions>(*options_);
    options->inter.clear();
    options->group_name = str(options_->group_name, "_", name);
    options->timeout += kHalfPatience;
    options->mesh.connect_timeout = kHalfConnectTimeout;
    options->blocking_wait = false;
    return make_child(c10::make_intrusive<c10d::PrefixStore>(name, store), rank, world_size,
                      options);
  };
  bool local = true;
  try {
    if (mates > 1) hierarchy.set_local(child(str("host", layout.host), layout.local, mates));
    local = false;
    const auto name = str("between", layout.local);
    if (options_->inter == "pycomm") {
      hierarchy.set_between(child(name, layout.host, layout.host_count()));
      return;
    }
    const auto between =
        make_with_torch(options_->inter, c10::make_intrusive<c10d::PrefixStore>(name, store),
                        layout.host, layout.host_count(), options_->timeout + kHalfPatience,
                        str(options_->group_name, "_", name), where);
    hierarchy.set_between(between);
    if (between->getBoundDeviceId() != where) between->setBoundDeviceId(where);
    between->eagerConnectSingleDevice(where);
  } catch (const std::exception& error) {
    throw CommError(hierarchy.explain(error, local));
  }
}

}  // namespace pycomm
