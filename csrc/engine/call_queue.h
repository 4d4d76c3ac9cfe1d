// SPDX-License-Identifier: MIT
// The collectives of a group that have been called and not begun, in the order in which they will
// run, with their numbers.
//
// Beside operations there are two kinds of entries: calls that were refused, which take a number
// and nothing else, and the gates of callback_order.h. What is called inside a callback goes in
// front of that callback's gate, and pushes up the numbers of what it overtakes, so that numbers
// follow the order on all ranks. Under the engine's lock, but for called().
#pragma once

#include <atomic>
#include <deque>
#include <memory>

#include "engine/callback_order.h"
#include "engine/operation.h"
#include "engine/recorder.h"

namespace pycomm {

class CallQueue {
 public:
  using OperationPtr = std::shared_ptr<Operation>;

  explicit CallQueue(Recorder& recorder) : recorder_(recorder) {}

  // `parent`: the gate of the callback that calls, or null.
  void add(const OperationPtr& operation, const GatePtr& parent);
  void add_refused(const GatePtr& parent);
  GatePtr add_gate(const GatePtr& parent);
  // Whether a collective called now, by a callback of `parent` or by none, would be the next.
  bool is_next(const GatePtr& parent) const;
  // Numbers a collective that is the next and begins at once; whoever runs it records it.
  void begin(const OperationPtr& operation, const GatePtr& parent);

  // Drops what nobody has to wait for at the front: refused calls, open gates, after a failure all.
  void settle(bool failed);
  bool empty() const { return entries_.empty(); }
  // The next to run; null when a gate stands in front of it. Of a settled queue.
  OperationPtr front() const { return empty() ? nullptr : entries_.front().operation; }
  GatePtr closed_gate() const { return empty() ? nullptr : entries_.front().gate; }
  void pop_front() { entries_.pop_front(); }
  // Whether a gate is closed.
  bool holds_back() const;
  // Opens `gate` if `operation` waits behind it: whoever waits for that inside the gate's callback
  // would wait for ever.
  void give_way(const GatePtr& gate, const Operation& operation);

  // How many collectives have been called. Any thread.
  uint64_t called() const { return next_.load(std::memory_order_acquire) - 1; }

 private:
  struct Entry {
    OperationPtr operation;
    GatePtr gate;
    uint64_t sequence = 0;
  };
  void insert(Entry entry, const GatePtr& parent);
  uint64_t take_number();

  Recorder& recorder_;
  std::deque<Entry> entries_;
  std::atomic<uint64_t> next_{1};
};

}  // namespace pycomm
