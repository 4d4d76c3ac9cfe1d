// SPDX-License-Identifier: MIT
// The engine's other half: the queue, the progress thread, messages, and the end of a group. See
// engine.h.
#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>

#include "base/log.h"
#include "engine/engine.h"

namespace pycomm {

// Under queue_mutex_, as everything that touches the queue.
void Engine::settle() {
  queue_.settle(failed_.load(std::memory_order_acquire));
  queued_ = !queue_.empty();
}

void Engine::skip() {
  if (forked()) return;  // a child's calls have no place among its parent's
  const std::lock_guard lock(queue_mutex_);
  queue_.add_refused(callback_order_->here());
  settle();
}

GatePtr Engine::hold_back() {
  if (forked()) return nullptr;
  const std::lock_guard lock(queue_mutex_);
  queued_ = true;
  return queue_.add_gate(callback_order_->here());
}

void Engine::let_callbacks_run(Deadline until) {
  if (forked() || callback_order_->here()) return;
  std::unique_lock lock(queue_mutex_);
  while (queue_.holds_back() && !failed_.load(std::memory_order_acquire) && !until.expired()) {
    queue_changed_.wait_for(lock,
                            std::min<std::chrono::nanoseconds>(kSleepSlice, until.remaining()));
  }
}

void Engine::give_way(const GatePtr& gate, const Operation& operation) {
  if (forked()) return;
  {
    const std::lock_guard lock(queue_mutex_);
    queue_.give_way(gate, operation);
  }
  queue_changed_.notify_all();
}

// A gate that stays closed for as long as an operation may take.
Failure Engine::overdue_gate() {
  const std::lock_guard lock(queue_mutex_);
  settle();
  const auto gate = queue_.closed_gate();
  if (!gate || busy_) return {};
  if (!gate->reached) {
    gate->reached = true;
    gate->deadline = Deadline::after(std::chrono::nanoseconds(timeout_ns_.load()));
  }
  if (!gate->deadline.expired()) return {};
  return {FailureKind::timeout,
          str("timeout after ", 1e-9 * static_cast<double>(timeout_ns_.load()),
              " s; a callback of a Future of this group has not returned, and collectives called "
              "later wait for it"),
          {mesh_->rank()}};
}

// Moves messages and finishes those that are done. Returns whether anything moved.
bool Engine::pump_messages() {
  std::vector<OperationPtr> finished;
  bool moved = false;
  try {
    moved = messages_.advance(finished);
  } catch (const CommError& error) {
    fail(explain(error.failure()), false);
  } catch (const std::exception& error) {
    fail({FailureKind::system, error.what(), {mesh_->rank()}}, false);
  }
  for (const auto& operation : finished) {
    Failure why;
    try {
      if (operation->after) operation->after();
    } catch (const std::exception& error) {
      why = {FailureKind::system, error.what(), {mesh_->rank()}};
    }
    complete(*operation, std::move(why));
  }
  return moved;
}

void Engine::fail_messages() {
  const Failure why = cause();
  for (const auto& operation : messages_.take_all()) complete(*operation, why);
}

// The stream that fills the operation's memory wakes nobody, so this thread looks. For peers this
// rank has not come to the operation yet.
Failure Engine::await_ready(const Operation& operation, WaitRole role) {
  const auto deadline = Deadline::after(operation.timeout);
  for (int looks = 0; !operation.ready(); ++looks) {
    if (failed_.load(std::memory_order_acquire)) return failure();
    if (role == WaitRole::progress && messages_.pending() && pump_messages()) looks = 0;
    if (looks < kReadyYields) {
      std::this_thread::yield();
    } else if (deadline.expired()) {
      return {FailureKind::timeout,
              str("timeout after ", std::chrono::duration<double>(operation.timeout).count(),
                  " s; the stream of this rank's device has not come to it: what was put on the "
                  "stream before is still running"),
              {mesh_->rank()}};
    } else {
      std::this_thread::sleep_for(kReadyNap);
    }
  }
  return {};
}

// How long one who has nothing to move may sleep: a stream that fills what is to be sent wakes
// nobody.
std::chrono::nanoseconds Engine::longest_sleep() {
  if (messages_.awaits_ready()) return kReadyNap;
  return kSleepSlice;
}

Failure Engine::inspect_messages(Liveness::Vigil& vigil) {
  if (failed_.load(std::memory_order_acquire)) return failure();
  auto awaited = messages_.awaited();
  for (const int peer : awaited) {
    if (!gone_silent(peer)) continue;
    // Its last message may have come since we looked.
    if (pump_messages() || !messages_.needs(peer)) return {};
    if (failed_.load(std::memory_order_acquire)) return failure();
    return has_left(peer, *liveness_.departure(peer));
  }
  if (messages_.waits_for_any()) {
    awaited.clear();
    for (int peer = 0; peer < mesh_->world_size(); ++peer) {
      if (peer != mesh_->rank() && !gone_silent(peer)) awaited.push_back(peer);
    }
    if (awaited.empty()) {
      if (pump_messages() || !messages_.waits_for_any()) return {};
      const int peer = mesh_->rank() == 0 ? 1 : 0;
      auto alone = has_left(peer, *liveness_.departure(peer));
      alone.text = "no rank is left to receive from; " + alone.text;
      return alone;
    }
  }
  if (const auto late = messages_.expired()) {
    std::vector<int> peers;
    if (late->peer != kAnySource) peers.push_back(late->peer);
    return inspect(*late, peers, vigil);
  }
  return liveness_.look(vigil, awaited);
}

// It has left, and nothing that it sent before can still be under way. Messages and farewell travel
// on different connections between hosts; in shared memory what is sent is there.
bool Engine::gone_silent(int peer) const {
  const auto departure = liveness_.departure(peer);
  if (!departure) return false;
  return mesh_->link(peer).progress || Liveness::Clock::now() - departure->at > kFarewellPatience;
}

// A synchronous send or recv: moves all messages until its own is done.
void Engine::run_message(const OperationPtr& operation) {
  if (operation->before) operation->before();
  {
    const std::unique_lock lock(queue_mutex_);
    if (stopping_) raise(*operation, cause());
    operation->record = recorder_.submitted(*operation);
    messages_.post(operation);
  }
  Backoff pausing(mesh_->wait_policy(WaitRole::caller));
  Liveness::Vigil vigil;
  while (!operation->finished()) {
    if (pump_messages()) {
      pausing.reset();
      vigil = {};
      continue;
    }
    if (failed_.load(std::memory_order_acquire)) fail_messages();
    if (operation->finished() || pausing.pause() != Pause::sleep) continue;
    const auto ticket = mesh_->waiter().arm();
    if (!pump_messages() && !operation->finished()) {
      if (const auto why = inspect_messages(vigil)) {
        fail(why, false);
        fail_messages();
      } else {
        mesh_->waiter().sleep(ticket, longest_sleep());
      }
    }
    mesh_->waiter().disarm();
  }
  if (operation->failure) raise(*operation, operation->failure);
}

// The queue is settled, something is at its front, and nobody is busy or completing.
void Engine::run_front(std::unique_lock<std::mutex>& lock, WaitRole role) {
  const OperationPtr operation = queue_.front();
  queue_.pop_front();
  queued_ = !queue_.empty();
  busy_ = true;
  lock.unlock();
  auto why = execute(*operation, role);
  lock.lock();
  busy_ = false;
  completing_ = true;  // works end in the order of the queue
  lock.unlock();
  complete(*operation, std::move(why));
  lock.lock();
  completing_ = false;
  if (queue_.empty()) return;
  queue_changed_.notify_all();
  if (messages_.pending()) mesh_->waiter().wake();
}

// The progress thread takes over where a gate or another thread is in the way.
void Engine::assist(const Operation& operation) {
  refuse_fork(operation);
  if (is_message(operation)) return;
  std::unique_lock lock(queue_mutex_);
  while (!operation.finished()) {
    settle();
    if (busy_ || completing_ || !queue_.front()) return;
    run_front(lock, WaitRole::caller);
    taken_over_ = true;
  }
}

// Nothing is queued. Who submits a small operation and waits for it at once runs it himself; to
// wake this thread for it costs him two switches of the core, several times the operation. So while
// that goes on this thread is not woken, but looks by itself every kNap: one that nobody waits for
// begins that much later. Large ones, and a second one, wake it as ever.
void Engine::rest(std::unique_lock<std::mutex>& lock) {
  if (taken_over_) naps_left_ = kNaps;
  taken_over_ = false;
  if (naps_left_ == 0 && watches_words_) return (void)queue_changed_.wait_for(lock, kSleepSlice);
  if (naps_left_ == 0) return queue_changed_.wait(lock);
  --naps_left_;
  napping_ = true;
  queue_changed_.wait_for(lock, kNap);
  napping_ = false;
}

void Engine::progress_loop() {
  ::pthread_setname_np(::pthread_self(), "pycomm_progress");
  ::prctl(PR_SET_TIMERSLACK, 1000);  // ns; the usual 50 us would double a nap
  std::unique_lock lock(queue_mutex_);
  while (true) {
    settle();
    if (!busy_ && !completing_ && queue_.front()) {
      run_front(lock, WaitRole::progress);
    } else if (messages_.pending()) {
      lock.unlock();
      drive_messages();
      lock.lock();
    } else if (stopping_ && queue_.empty()) {
      return;
    } else if (queue_.empty() && streams_released_) {
      lock.unlock();
      const bool again = release_streams();
      lock.lock();
      if (!stopping_ && queue_.empty()) {
        queue_changed_.wait_for(lock, again ? kSleepSlice : kFailedRest);
      }
    } else if (queue_.empty()) {
      if (watches_words_) {
        lock.unlock();
        look_at_words();
        lock.lock();
        if (stopping_ || !queue_.empty() || messages_.pending() || streams_released_) continue;
      }
      rest(lock);
    } else {
      queue_changed_.wait_for(lock, kSleepSlice);
      lock.unlock();
      if (const auto why = overdue_gate()) fail(why, false);
      lock.lock();
    }
  }
}

// Until there are no messages, or a collective wants this thread.
void Engine::drive_messages() {
  Backoff pausing(mesh_->wait_policy(WaitRole::progress));
  Liveness::Vigil vigil;
  while (messages_.pending()) {
    if (failed_.load(std::memory_order_acquire)) return fail_messages();
    if (collective_waits()) return;
    if (pump_messages()) {
      pausing.reset();
      vigil = {};
    } else if (pausing.pause() == Pause::sleep) {
      const auto ticket = mesh_->waiter().arm();
      if (!pump_messages() && !collective_waits()) {
        auto why = inspect_messages(vigil);
        if (!why) why = overdue_gate();
        if (why) {
          fail(why, false);
        } else {
          mesh_->waiter().sleep(ticket, longest_sleep());
        }
      }
      mesh_->waiter().disarm();
    }
  }
}

// While a caller's thread runs a collective the queue has to wait anyway.
bool Engine::collective_waits() {
  if (!queued_) return false;
  const std::lock_guard lock(queue_mutex_);
  settle();
  return !busy_ && !completing_ && queue_.front() != nullptr;
}

void Engine::drain(std::chrono::nanoseconds patience) {
  const auto deadline = Deadline::after(patience);
  std::unique_lock lock(queue_mutex_);
  while ((busy_ || !queue_.empty() || messages_.pending()) && !deadline.expired() &&
         !failed_.load(std::memory_order_acquire)) {
    queue_changed_.wait_for(lock, std::chrono::milliseconds(5));
  }
}

void Engine::shutdown(const std::string& reason, bool drain_first) {
  // In a forked child the threads do not exist, the sockets are the parent's to speak on, and its
  // threads may hold the lock.
  if (forked()) {
    (void)progress_thread_.release();
    (void)watcher_thread_.release();
    return;
  }
  const std::lock_guard only_one(shutdown_mutex_);
  if (closed_) return;
  closed_ = true;
  if (drain_first) drain(options_.detect_timeout);
  callback_order_->detach();
  {
    // Peers may still be at work on what this rank has ended; only what is pending is given up.
    const std::lock_guard lock(queue_mutex_);
    if (busy_ || !queue_.empty()) streams_released_ = true;
  }
  if (streams_released_) (void)release_streams();
  fail({FailureKind::aborted, "the group is closed (" + reason + "); make a new one", {}}, true);
  {
    const std::lock_guard lock(queue_mutex_);
    stopping_ = true;
  }
  queue_changed_.notify_all();
  mesh_->waiter().wake();
  const auto finish = [](std::unique_ptr<std::thread>& thread) {
    if (thread) thread->join();
    thread.reset();
  };
  finish(progress_thread_);
  fail_messages();
  if (mesh_->world_size() > 1) liveness_.say_goodbye(reason);
  liveness_.stop();
  finish(watcher_thread_);
}

}  // namespace pycomm
