// SPDX-License-Identifier: MIT
// Where collectives that a callback calls stand in the order of a group's collectives.
//
// Ranks must run their collectives in one order. A callback, when it runs at all, runs at another
// moment on each rank, so a collective it calls would race with those of the calling thread
// (PyTorch's PowerSGD hook does this for every bucket). Hence a rule that does not depend on time:
// what a callback calls stands where the Future was asked for. If the operation was over by then,
// torch runs callbacks on the spot, and nothing is to be done. Otherwise a gate is put into the
// engine's queue there: what callbacks call goes in front of it, what is called later stays behind
// it, and nobody passes it until the callbacks have run.
//
// Shared by the engine and the works whose callbacks run. Any thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "base/deadline.h"

namespace pycomm {

struct CallbackGate {
  std::atomic<bool> open{false};
  // Under the engine's lock: from when it has been the next in the queue, how long it may be.
  Deadline deadline = Deadline::never();
  bool reached = false;
};
using GatePtr = std::shared_ptr<CallbackGate>;

class CallbackOrder {
 public:
  // `wake` is called, from any thread, when a gate has been opened.
  explicit CallbackOrder(std::function<void()> wake) : wake_(std::move(wake)) {}
  // No wake-ups any more: the engine is about to go.
  void detach();
  void open(const GatePtr& gate);
  // The gate of the callbacks that this thread is running, if they are of this group.
  GatePtr here() const;

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
    const Scope* const outer_;
    friend class CallbackOrder;
  };

 private:
  std::mutex mutex_;
  std::function<void()> wake_;
};

}  // namespace pycomm
