// SPDX-License-Identifier: MIT
// Where collectives that a callback calls stand in the order of a group's collectives.
//
// Ranks must run their collectives in one order. A callback of operation n, when it runs at all,
// runs at another moment on each rank, so a collective it calls would race with number n + 1 of the
// calling thread (PyTorch's PowerSGD hook does this for every bucket). Hence a rule that does not
// depend on time: what a callback calls comes right after the operation it is a callback of, before
// everything called later. While a callback runs, a gate holds later collectives back; its own are
// one level deeper and pass. Callbacks of those are deeper still.
//
// Shared by the engine and the works whose callbacks run. Any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <mutex>

namespace pycomm {

class CallbackOrder {
 public:
  struct Gate {
    int depth = 0;  // of the operation whose callbacks run
    std::chrono::steady_clock::time_point since;
  };
  using GatePtr = std::shared_ptr<const Gate>;

  // `wake` is called, from any thread, when collectives may have become free to start.
  explicit CallbackOrder(std::function<void()> wake) : wake_(std::move(wake)) {}
  // No wake-ups any more: the engine is about to go.
  void detach();

  // Holds back what is not deeper than `depth`, until the gate is opened.
  GatePtr close(int depth);
  void open(const GatePtr& gate);
  // Whether a collective of this depth may start. A callback that runs for longer than
  // kCallbackGatePatience holds back nobody: it may be waiting for the one that waits for it.
  bool passes(int depth);

  // Of collectives that this thread calls: 0, or more inside a callback.
  int depth_here() const;

  // What runs on this thread while it lives are callbacks behind `gate`. Opens it at the end.
  class Scope {
   public:
    Scope(std::shared_ptr<CallbackOrder> order, GatePtr gate);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    const std::shared_ptr<CallbackOrder> order_;
    const GatePtr gate_;
    const CallbackOrder* const outer_order_;
    const int outer_depth_;
  };

 private:
  std::mutex wake_mutex_;  // taken alone
  std::function<void()> wake_;
  std::mutex mutex_;
  std::list<GatePtr> closed_;
  std::atomic<size_t> closed_count_{0};
};

}  // namespace pycomm
