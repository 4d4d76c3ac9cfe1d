// SPDX-License-Identifier: MIT
#include "engine/callback_pool.h"

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/limits.h"

namespace pycomm {

struct CallbackPool::State {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> waiting;
  size_t idle = 0;
  size_t unfinished = 0;
  bool stopping = false;

  void work() {
    ::pthread_setname_np(::pthread_self(), "pycomm_callback");
    std::unique_lock lock(mutex);
    while (true) {
      if (waiting.empty()) {
        if (stopping) return;
        ++idle;
        const bool woken = changed.wait_for(lock, kCallbackWorkerIdle,
                                            [this] { return !waiting.empty() || stopping; });
        --idle;
        if (!woken) return;
        continue;
      }
      auto callback = std::move(waiting.front());
      waiting.pop_front();
      lock.unlock();
      callback();
      // Dropped before locking: it may hold the last reference to the pool, whose end locks too.
      callback = nullptr;
      lock.lock();
      --unfinished;
      changed.notify_all();
    }
  }
};

CallbackPool::CallbackPool() : state_(std::make_shared<State>()) {}

CallbackPool::~CallbackPool() {
  const std::lock_guard lock(state_->mutex);
  state_->stopping = true;
  state_->changed.notify_all();
}

void CallbackPool::run(std::function<void()> callback) {
  const std::lock_guard lock(state_->mutex);
  state_->waiting.push_back(std::move(callback));
  ++state_->unfinished;
  if (state_->idle >= state_->waiting.size()) {
    state_->changed.notify_all();  // wait_idle() may be among those who wait
  } else {
    std::thread([state = state_] { state->work(); }).detach();
  }
}

bool CallbackPool::wait_idle(Deadline deadline) {
  std::unique_lock lock(state_->mutex);
  while (state_->unfinished > 0 && !deadline.expired()) {
    state_->changed.wait_for(lock, std::chrono::milliseconds(deadline.remaining_ms_at_most(50)));
  }
  return state_->unfinished == 0;
}

}  // namespace pycomm
