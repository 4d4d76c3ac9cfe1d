// SPDX-License-Identifier: MIT
// The engine beside a device: it attends to operations that the device carries out, and when the
// group has failed it releases the streams that wait for peers. See engine.h and watched.h.
#include <algorithm>
#include <thread>

#include "engine/device_words.h"
#include "engine/engine.h"

namespace pycomm {

// Nothing wakes this thread at the end, so it looks.
Failure Engine::attend(Operation& operation, WaitRole role) {
  Watched& watched = *operation.watched;
  mesh_->progress().begun.store(operation.sequence, std::memory_order_release);
  if (operation.record == kNotRecorded) operation.record = recorder_.submitted(operation);
  recorder_.started(operation.record, watched.label());
  operation.deadline = Deadline::after(operation.timeout);
  Liveness::Vigil vigil;
  auto next_inspection = Deadline::after(kSleepSlice);
  bool given_up = false;
  for (int looks = 0; !watched.over(); ++looks) {
    if (failed_.load(std::memory_order_acquire)) return failure();
    if (auto why = watched.fault()) return why;
    if (role == WaitRole::progress && messages_.pending()) (void)pump_messages();
    if (looks < kAttendYields) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(kAttendNap);
    if (!next_inspection.expired()) continue;
    next_inspection = Deadline::after(kSleepSlice);
    if (!given_up && watched.given_up()) {
      given_up = true;
      operation.deadline = Deadline::after(kDevicePatience);  // whoever did knows more
    }
    if (auto why = inspect_device(operation, vigil)) return why;
  }
  // What released the stream may have been a failure, here or at a peer that has yet to tell.
  return failure();
}

Failure Engine::inspect_device(const Operation& operation, Liveness::Vigil& vigil) {
  auto awaited = operation.watched->awaited();
  const auto end = std::remove(awaited.begin(), awaited.end(), mesh_->rank());
  const bool own = end != awaited.end();
  awaited.erase(end, awaited.end());
  if (!awaited.empty() || !own || !operation.deadline.expired()) {
    return inspect(operation, awaited, vigil);
  }
  return {FailureKind::timeout,
          str("timeout after ", std::chrono::duration<double>(operation.timeout).count(),
              " s; this rank's device has not come to it: what was put on its stream before is "
              "still running"),
          {mesh_->rank()}};
}

void Engine::refuse(const Operation& operation, const Failure& found) {
  fail(found, false);
  raise(operation, cause());
}

void Engine::release_on_failure(const std::shared_ptr<DeviceWords>& words, bool kernels) {
  {
    const std::lock_guard lock(words_mutex_);
    std::erase_if(words_, [](const auto& one) { return one.expired(); });
    words_.push_back(words);
    if (kernels) watches_words_ = true;
  }
  const std::lock_guard lock(queue_mutex_);
  need_progress_thread();
}

void Engine::look_at_words() {
  Failure found;
  {
    const std::lock_guard lock(words_mutex_);
    for (const auto& one : words_) {
      const auto words = one.lock();
      if (words && !found) found = words->explain_fault();
    }
  }
  if (found) fail(found, false);
}

Failure Engine::look_after(const std::vector<int>& peers, Liveness::Vigil& vigil) {
  if (failed_.load(std::memory_order_acquire)) return failure();
  Failure why;
  for (const int peer : peers) {
    const auto departure = liveness_.departure(peer);
    if (departure && !why) why = has_left(peer, *departure);
  }
  if (!why) why = liveness_.look(vigil, peers);
  if (why) fail(why, false);
  return why;
}

// True while there are some.
bool Engine::release_streams() {
  const std::lock_guard lock(words_mutex_);
  bool any = false;
  for (const auto& one : words_) {
    if (const auto words = one.lock()) {
      words->break_up();
      any = true;
    }
  }
  return any;
}

}  // namespace pycomm
