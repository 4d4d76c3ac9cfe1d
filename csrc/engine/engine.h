// SPDX-License-Identifier: MIT
// The engine of one group on one rank: takes operations, runs them in order, and turns everything
// that goes wrong into one failure that every rank learns.
//
// Collectives run one at a time in the order of the calls. A synchronous call with nothing queued
// runs on the caller's thread; otherwise the progress thread, which starts with the first
// asynchronous operation, runs it. Messages (send, recv) move whenever somebody waits for them. A
// watcher thread notices deaths. After a failure the group is dead: every pending and later
// operation repeats the first cause. All methods may be called from any thread; none needs or
// touches Python. Operations are shared with their callers; the engine owns the mesh.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "engine/call_queue.h"
#include "engine/callback_order.h"
#include "engine/executor.h"
#include "engine/fork_guard.h"
#include "engine/liveness.h"
#include "engine/point_to_point.h"
#include "engine/programs.h"
#include "engine/recorder.h"
#include "engine/wire_choice.h"

namespace pycomm {

struct EngineOptions {
  std::chrono::nanoseconds timeout = std::chrono::minutes(30);  // of an operation that names none
  std::chrono::nanoseconds detect_timeout = kDetectTimeout;
  AlgorithmChoices algorithms;
  WireChoice wire;           // what float32 sums travel as
  bool check_plans = false;  // prove every plan before its first use
  std::string flight_dir;    // where a failure leaves the flight recorder's dump; empty: nowhere
  std::string group_name;
  // Called once, by the thread that decides or hears that the group has failed, when peers have
  // been told and before anybody here is. Not when the group is closed. May be empty.
  std::function<void()> on_failure;
};

// Throws what `failure` means to one who waits for `operation`. Outlives the engine.
[[noreturn]] void raise(const Operation& operation, const Failure& failure, int rank,
                        int world_size);

class DeviceWords;

class Engine {
 public:
  Engine(std::unique_ptr<Mesh> mesh, EngineOptions options);
  ~Engine();

  // Collective, before anything else is called: with PYCOMM_WIRE=auto measures and decides what
  // float32 sums travel as; see wire_race.cc. Throws CommError, and UsageError on all ranks when
  // only some have "auto", or have chosen an algorithm with which nothing is measured.
  void settle_wire();

  // Runs to completion. Throws CommError that names operation, number, rank and cause.
  void run(const std::shared_ptr<Operation>& operation);
  // Returns at once; the operation is finished by another thread.
  void submit(const std::shared_ptr<Operation>& operation);
  // Runs the queue up to `operation` on this thread, as far as nobody else does already: one who
  // waits for what he has just submitted need not wait for another thread to wake.
  void assist(const Operation& operation);
  // Throws UsageError in a child that was forked from the process that made the group. Takes no
  // lock: the parent's threads, which are not there, may have held any of them.
  void refuse_fork(const Operation& operation) const;
  bool forked() const { return fork_guard_.forked(); }
  // Waits for a submitted operation. `timeout` zero: as long as the operation itself may take.
  void wait(const Operation& operation, std::chrono::nanoseconds timeout);

  // A collective that was refused before it was submitted takes its number all the same: ranks that
  // were not refused are then found out at the next one instead of being paired with it.
  void skip();

  void set_timeout(std::chrono::nanoseconds timeout) { timeout_ns_ = timeout.count(); }
  std::chrono::nanoseconds timeout() const { return std::chrono::nanoseconds(timeout_ns_.load()); }
  // Fails the group on all ranks.
  void abort(const std::string& reason);
  // Fails the group over what a call found out before it was an operation, and raises it.
  [[noreturn]] void refuse(const Operation& operation, const Failure& found);
  // For who waits for peers outside of an operation: fails the group when one of them has died or
  // left. Returns why it has failed, if it has.
  Failure look_after(const std::vector<int>& peers, Liveness::Vigil& vigil);
  // From a failure on, streams that wait for these words are released, again and again until the
  // group is shut down: a graph may be replayed.
  // `kernels`: what they find out while nobody watches them, those of graphs, fails the group too.
  void release_on_failure(const std::shared_ptr<DeviceWords>& words, bool kernels);
  // Lets pending operations finish for a short while, says goodbye and stops the threads.
  // Idempotent.
  void shutdown(const std::string& reason, bool drain);

  Mesh& mesh() { return *mesh_; }
  const std::shared_ptr<CallbackOrder>& callback_order() const { return callback_order_; }
  // Holds back what is called from now on, until the gate is opened; see callback_order.h.
  GatePtr hold_back();
  // Returns when the callbacks that hold back what is called now have run: from then on sequence()
  // is what it is on all ranks at this place of their programs. At `until` at the latest.
  void let_callbacks_run(Deadline until);
  // Somebody inside the callbacks of `gate` waits for `operation`.
  void give_way(const GatePtr& gate, const Operation& operation);
  uint64_t sequence() const { return queue_.called(); }
  // Why the group is dead: what every later operation raises. Empty while it is alive.
  Failure failure() const;
  std::string flight_json() const;
  // The algorithm that would carry out such an operation.
  std::string algorithm_for(Collective collective, size_t bytes) const;
  // What choices go by, and what they let expect.
  const Programs& programs() const { return programs_; }

 private:
  using OperationPtr = std::shared_ptr<Operation>;

  void admit(Operation& operation);
  void settle();
  Failure overdue_gate();
  Failure execute(Operation& operation, WaitRole role);
  Failure carry_out(const Program& program, Operation& operation, WaitRole role);
  Failure attend(Operation& operation, WaitRole role);
  Failure inspect_device(const Operation& operation, Liveness::Vigil& vigil);
  bool release_streams();
  void look_at_words();
  Failure await_ready(const Operation& operation, WaitRole role);
  Failure sleep_until_moved(const Operation& operation, Liveness::Vigil& vigil);
  void need_progress_thread();
  void run_message(const OperationPtr& operation);
  bool pump_messages();
  Failure inspect(const Operation& operation, const std::vector<int>& awaited,
                  Liveness::Vigil& vigil);
  std::chrono::nanoseconds longest_sleep();
  Failure inspect_messages(Liveness::Vigil& vigil);
  Failure has_left(int peer, const Liveness::Departure& departure) const;
  Failure timed_out(const Operation& operation, const std::vector<int>& awaited);
  Failure explain(Failure found);
  bool gone_silent(int peer) const;
  void complete(Operation& operation, Failure why);
  // The first failure, from when it is decided on: peers are told before failure() tells.
  Failure cause() const;
  void fail(const Failure& failure, bool heard);
  void fail_messages();
  void progress_loop();
  void run_front(std::unique_lock<std::mutex>& lock, WaitRole role);
  void rest(std::unique_lock<std::mutex>& lock);
  void drive_messages();
  bool collective_waits();
  void drain(std::chrono::nanoseconds patience);
  [[noreturn]] void raise(const Operation& operation, const Failure& failure) const;

  std::unique_ptr<Mesh> mesh_;
  const EngineOptions options_;
  std::atomic<int64_t> timeout_ns_;
  const ForkGuard fork_guard_;
  Recorder recorder_;
  Executor executor_;  // of whoever has set busy_
  PointToPoint messages_;
  Programs programs_;  // likewise, but for algorithm_for()

  const std::shared_ptr<CallbackOrder> callback_order_;
  std::mutex queue_mutex_;
  std::condition_variable queue_changed_;
  CallQueue queue_{recorder_};
  bool busy_ = false;        // somebody runs a collective
  bool completing_ = false;  // somebody tells of one from the queue that has just ended
  bool stopping_ = false;
  // Of the progress thread, see rest().
  bool napping_ = false;     // it looks at the queue soon by itself
  bool taken_over_ = false;  // since its last rest somebody who waited ran what was submitted
  int naps_left_ = 0;
  std::atomic<bool> queued_{false};  // a collective waits: a driver of messages should look

  std::mutex words_mutex_;
  std::vector<std::weak_ptr<DeviceWords>> words_;
  std::atomic<bool> streams_released_{false}, watches_words_{false};

  mutable std::mutex failure_mutex_;
  Failure failure_;
  std::atomic<bool> failed_{false};
  std::mutex shutdown_mutex_;
  bool closed_ = false;

  Liveness liveness_;
  std::unique_ptr<std::thread> progress_thread_;
  std::unique_ptr<std::thread> watcher_thread_;
};

}  // namespace pycomm
