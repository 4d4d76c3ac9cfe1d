// SPDX-License-Identifier: MIT
#include "engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <cstdio>

#include "base/log.h"

namespace pycomm {
namespace {

std::vector<int> control_sockets(Mesh& mesh) {
  std::vector<int> sockets;
  for (int peer = 0; peer < mesh.world_size(); ++peer) {
    if (mesh.link(peer).control) sockets.push_back(mesh.link(peer).control->fd());
  }
  return sockets;
}

// Alike on all ranks: set-up refuses different lists of transports, and with one list either all
// pairs share memory or every rank has a peer with which it does not.
Cut cut_of(Mesh& mesh) {
  bool shared_memory = true;
  for (int peer = 0; peer < mesh.world_size(); ++peer) {
    shared_memory &= peer == mesh.rank() || mesh.link(peer).transport == "shm";
  }
  return cut_for(mesh.world_size(), mesh.segment_bytes(), shared_memory,
                 mesh.address(0).segment_exact != 0);
}

}  // namespace

Engine::Engine(std::unique_ptr<Mesh> mesh, EngineOptions options)
    : mesh_(std::move(mesh)),
      options_(std::move(options)),
      timeout_ns_(options_.timeout.count()),
      fork_guard_(control_sockets(*mesh_)),
      recorder_(kRecorderEntries),
      executor_(*mesh_, cut_of(*mesh_)),
      messages_(*mesh_),
      programs_(*mesh_, options_.algorithms, options_.check_plans, options_.wire.wire),
      callback_order_(std::make_shared<CallbackOrder>([this] {
        {
          const std::lock_guard lock(queue_mutex_);
        }  // whoever looked before is asleep now
        queue_changed_.notify_all();
        if (messages_.pending()) mesh_->waiter().wake();
      })),
      liveness_(*mesh_, options_.detect_timeout,
                [this](const Failure& failure, bool heard) { fail(failure, heard); }) {
  if (mesh_->world_size() > 1) {
    watcher_thread_ = std::make_unique<std::thread>([this] {
      ::pthread_setname_np(::pthread_self(), "pycomm_watcher");
      try {
        liveness_.watch();
      } catch (const std::exception& error) {
        fail({FailureKind::system, error.what(), {mesh_->rank()}}, false);
      }
    });
  }
}

Engine::~Engine() { shutdown("the group was destroyed", false); }

Failure Engine::failure() const {
  return failed_.load(std::memory_order_acquire) ? cause() : Failure{};
}

Failure Engine::cause() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

std::string Engine::flight_json() const {
  return recorder_.to_json(mesh_->rank(), mesh_->world_size(), failure());
}

void raise(const Operation& operation, const Failure& failure, int rank, int world_size) {
  const bool numbered = operation.sequence != 0 && !is_message(operation);
  Failure told = failure;
  told.text = str(name_of(operation.part_of.value_or(operation.collective)),
                  numbered ? str(" #", operation.sequence) : std::string(), " on rank ", rank,
                  " of ", world_size, ": ", failure.text);
  throw CommError(std::move(told));
}

void Engine::raise(const Operation& operation, const Failure& failure) const {
  pycomm::raise(operation, failure, mesh_->rank(), mesh_->world_size());
}

// A child has the queue and the rings, but they are the parent's to use.
void Engine::refuse_fork(const Operation& operation) const {
  PYCOMM_USAGE(!fork_guard_.forked(), name_of(operation.collective),
               ": this process was forked from the one that made the group, and a group does not "
               "survive fork; call init_process_group in the child");
}

// What every call checks first; sets what the engine sets.
void Engine::admit(Operation& operation) {
  refuse_fork(operation);
  if (failed_.load(std::memory_order_acquire)) raise(operation, failure());
  auto timeout = operation.timeout;
  if (timeout == std::chrono::nanoseconds::max()) {
    timeout = std::chrono::nanoseconds(timeout_ns_.load());
  }
  operation.timeout = timeout;
  // Waiting in the queue is not a collective's own time; see carry_out().
  if (is_message(operation)) operation.deadline = Deadline::after(timeout);
}

std::string Engine::algorithm_for(Collective collective, size_t bytes) const {
  return programs_.algorithm_for(collective, bytes);
}

// Under queue_mutex_. Before anything is queued: if no thread can be had, nothing has happened yet.
void Engine::need_progress_thread() {
  if (progress_thread_) return;
  progress_thread_ = std::make_unique<std::thread>([this] { progress_loop(); });
}

void Engine::run(const OperationPtr& operation) {
  admit(*operation);
  if (is_message(*operation)) return run_message(operation);
  {
    std::unique_lock lock(queue_mutex_);
    if (stopping_) raise(*operation, cause());
    const auto parent = callback_order_->here();
    if (!queue_.empty()) settle();
    if (busy_ || !queue_.is_next(parent)) {
      need_progress_thread();
      queue_.add(operation, parent);
      queued_ = true;
      lock.unlock();
      queue_changed_.notify_all();
      if (messages_.pending()) mesh_->waiter().wake();
      return wait(*operation, {});
    }
    queue_.begin(operation, parent);
    busy_ = true;
  }
  auto why = execute(*operation, WaitRole::caller);
  bool more = false;
  {
    const std::lock_guard lock(queue_mutex_);
    busy_ = false;
    more = !queue_.empty();
  }
  // Not for nothing: the progress thread may sleep there, and waking it costs more than the call.
  if (more) queue_changed_.notify_all();
  complete(*operation, std::move(why));
  if (more && messages_.pending()) mesh_->waiter().wake();
  if (operation->failure) raise(*operation, operation->failure);
}

void Engine::submit(const OperationPtr& operation) {
  admit(*operation);
  if (is_message(*operation) && operation->before) operation->before();
  bool wake = true;
  {
    const std::lock_guard lock(queue_mutex_);
    // Shutdown waits for nobody who comes after it.
    if (stopping_) raise(*operation, cause());
    need_progress_thread();
    if (is_message(*operation)) {
      operation->record = recorder_.submitted(*operation);
      messages_.post(operation);
    } else {
      wake = !napping_ || !queue_.empty() || bytes_of(*operation) > kNapBytesMax;
      queue_.add(operation, callback_order_->here());
      queued_ = true;
    }
  }
  if (wake) queue_changed_.notify_all();
  // The progress thread may be asleep over messages.
  if (messages_.pending()) mesh_->waiter().wake();
}

void Engine::wait(const Operation& operation, std::chrono::nanoseconds timeout) {
  if (!operation.finished()) refuse_fork(operation);
  if (timeout.count() <= 0) assist(operation);
  const auto until = timeout.count() > 0 ? Deadline::after(timeout) : Deadline::never();
  if (!operation.wait_finished(until)) {
    raise(operation, {FailureKind::timeout,
                      str("not finished after ", std::chrono::duration<double>(timeout).count(),
                          " s, the timeout given to wait(); it goes on in the background"),
                      {}});
  }
  if (operation.failure) raise(operation, operation.failure);
}

void Engine::complete(Operation& operation, Failure why) {
  recorder_.finished(operation.record, why);
  // Their captures are tensors, which must not live as long as the user keeps the handle.
  operation.before = nullptr;
  operation.after = nullptr;
  operation.watched = nullptr;
  operation.finish(std::move(why));
}

// Runs a collective to its end on this thread; busy_ is ours. The caller completes it once busy_ is
// given back, so that whoever waits for it finds the engine free.
Failure Engine::execute(Operation& operation, WaitRole role) {
  Failure why = failure();
  try {
    if (!why && !operation.ready()) why = await_ready(operation, role);
    if (!why) {
      if (operation.before) operation.before();
      why = operation.watched ? attend(operation, role)
                              : carry_out(programs_.for_operation(operation), operation, role);
      if (!why && operation.after) operation.after();
    }
  } catch (const CommError& error) {
    why = explain(error.failure());
  } catch (const std::exception& error) {
    why = {FailureKind::system, error.what(), {mesh_->rank()}};
  }
  if (why) {
    executor_.quarantine_windows();
    if (operation.record == kNotRecorded) operation.record = recorder_.submitted(operation);
    recorder_.finished(operation.record, why);  // for the dump that fail() leaves
    fail(why, false);
    why = cause();  // the first one, which may be another's
  } else {
    mesh_->progress().completed.store(operation.sequence, std::memory_order_release);
  }
  return why;
}

// What peers wait for leaves first; the books are kept while it is on its way.
Failure Engine::carry_out(const Program& program, Operation& operation, WaitRole role) {
  mesh_->progress().begun.store(operation.sequence, std::memory_order_release);
  executor_.start(program, operation);
  auto progress = executor_.advance();
  if (operation.record == kNotRecorded) operation.record = recorder_.submitted(operation);
  recorder_.started(operation.record, program.label.c_str());
  Backoff pausing(mesh_->wait_policy(role));
  Liveness::Vigil vigil;
  for (; progress != Executor::Progress::done; progress = executor_.advance()) {
    if (progress == Executor::Progress::failed) return explain(executor_.failure());
    // Looked at after every block and before every pause: what lies in peers' memory must not be
    // touched for long after a failure, and on a busy machine a row of yields may take a second.
    if (failed_.load(std::memory_order_acquire)) return failure();
    bool moved = progress == Executor::Progress::moved;
    // Messages that nobody waits for are the progress thread's.
    if (role == WaitRole::progress && messages_.pending()) moved |= pump_messages();
    if (moved) {
      pausing.reset();
      vigil = {};
      continue;
    }
    const auto pause = pausing.pause();
    if (pause == Pause::poll) continue;
    if (operation.deadline.is_never()) operation.deadline = Deadline::after(operation.timeout);
    if (pause != Pause::sleep) continue;
    if (auto why = sleep_until_moved(operation, vigil)) return why;
  }
  return {};
}

// Until a peer may have moved something, kSleepSlice at most.
Failure Engine::sleep_until_moved(const Operation& operation, Liveness::Vigil& vigil) {
  Failure why;
  const auto ticket = mesh_->waiter().arm();
  if (executor_.advance() == Executor::Progress::blocked) {
    why = executor_.find_contradiction() ? executor_.failure()
                                         : inspect(operation, executor_.awaited(), vigil);
    if (!why) mesh_->waiter().sleep(ticket, longest_sleep());
  }
  mesh_->waiter().disarm();
  return why;
}

// What a waiting thread looks at before it sleeps.
Failure Engine::inspect(const Operation& operation, const std::vector<int>& awaited,
                        Liveness::Vigil& vigil) {
  if (failed_.load(std::memory_order_acquire)) return failure();
  for (const int peer : awaited) {
    const auto departure = liveness_.departure(peer);
    // What it completed it has sent whole.
    if (!departure || (!is_message(operation) && operation.sequence <= departure->completed))
      continue;
    return has_left(peer, *departure);
  }
  if (operation.deadline.expired()) return timed_out(operation, awaited);
  return liveness_.look(vigil, awaited);
}

Failure Engine::has_left(int peer, const Liveness::Departure& departure) const {
  return {FailureKind::peer_failure,
          str(mesh_->describe(peer), " has left the group: ", departure.reason, "; ",
              liveness_.how_far(peer)),
          {peer}};
}

// Whom we wait for may itself wait for another: the ranks that never arrived are to blame, wherever
// they are, and only when there is none those that we wait for.
Failure Engine::timed_out(const Operation& operation, const std::vector<int>& awaited) {
  auto culprits = awaited;
  if (!is_message(operation)) {
    const auto absent = liveness_.not_arrived_at(operation.sequence);
    if (!absent.empty()) culprits = absent;
  }
  Failure timeout{FailureKind::timeout, {}, culprits};
  timeout.text =
      str("timeout after ", std::chrono::duration<double>(operation.timeout).count(), " s");
  for (const int peer : culprits) {
    timeout.text += str("; waiting for ", mesh_->describe(peer), ": ", liveness_.how_far(peer));
  }
  return timeout;
}

// A broken data connection is mostly the echo of a death that the watcher is about to hear of, or
// of a rank that raised over another's death and is gone by now. The watcher knows more, so it gets
// a moment to speak first, and one in which it runs.
Failure Engine::explain(Failure found) {
  if (found.kind != FailureKind::peer_failure || found.ranks.size() != 1) return found;
  const int peer = found.ranks.front();
  if (!failed_.load(std::memory_order_acquire)) (void)liveness_.catch_up();
  const auto patience = Deadline::after(kEchoPatience);
  while (!failed_.load(std::memory_order_acquire) && !patience.expired()) {
    if (const auto departure = liveness_.departure(peer)) return has_left(peer, *departure);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (failed_.load(std::memory_order_acquire)) return failure();
  found.text = str(mesh_->describe(peer), ": ", found.text, "; ", liveness_.how_far(peer));
  return found;
}

void Engine::fail(const Failure& failure, bool heard) {
  const bool closes = heard && failure.kind == FailureKind::aborted;
  {
    const std::lock_guard lock(failure_mutex_);
    if (failure_) return;
    failure_ = failure;
    // Peers are told before anybody here learns: who raises may end this process at once, and then
    // its end must not be the first thing that peers hear of. For the same reason what was heard is
    // passed on: a peer may read our farewell before it reads the one who decided.
    if (!closes && mesh_->world_size() > 1) liveness_.tell_failure(failure);
  }
  if (!closes && options_.on_failure) options_.on_failure();
  failed_.store(true, std::memory_order_release);
  if (!closes) {
    streams_released_ = true;
    (void)release_streams();
  }
  if (!heard && failure.kind != FailureKind::aborted) {
    log(LogLevel::error, mesh_->rank(), failure.text);
  }
  mesh_->waiter().wake();
  queue_changed_.notify_all();
  if (options_.flight_dir.empty() || failure.kind == FailureKind::aborted) return;
  const auto path = str(options_.flight_dir, "/pycomm_flight_", options_.group_name, "_rank",
                        mesh_->rank(), ".json");
  if (std::FILE* file = std::fopen((path + ".part").c_str(), "w")) {
    const auto json = flight_json();
    const bool whole = std::fwrite(json.data(), 1, json.size(), file) == json.size();
    if (std::fclose(file) == 0 && whole) std::rename((path + ".part").c_str(), path.c_str());
  }
}

void Engine::abort(const std::string& reason) {
  fail(
      {FailureKind::aborted, str("aborted by rank ", mesh_->rank(), ": ", reason), {mesh_->rank()}},
      false);
}

}  // namespace pycomm
