// SPDX-License-Identifier: MIT
#include "engine/call_queue.h"

#include <algorithm>

namespace pycomm {

void CallQueue::insert(Entry entry, const GatePtr& parent) {
  auto at = entries_.end();
  if (parent) {
    at = std::find_if(entries_.begin(), entries_.end(),
                      [&](const Entry& one) { return one.gate == parent; });
  }
  if (!entry.gate) {
    entry.sequence = take_number();
    for (auto other = entries_.end(); other != at;) {
      --other;
      if (other->gate) continue;
      std::swap(entry.sequence, other->sequence);
      if (!other->operation) continue;
      other->operation->sequence = other->sequence;
      recorder_.renumbered(other->operation->record, other->sequence);
    }
  }
  if (entry.operation) {
    entry.operation->sequence = entry.sequence;
    entry.operation->record = recorder_.submitted(*entry.operation);
  }
  entries_.insert(at, std::move(entry));
}

void CallQueue::add(const OperationPtr& operation, const GatePtr& parent) {
  insert({operation, nullptr}, parent);
}

void CallQueue::add_refused(const GatePtr& parent) { insert({}, parent); }

GatePtr CallQueue::add_gate(const GatePtr& parent) {
  auto gate = std::make_shared<CallbackGate>();
  insert({nullptr, gate}, parent);
  return gate;
}

bool CallQueue::is_next(const GatePtr& parent) const {
  return empty() || (parent && entries_.front().gate == parent);
}

void CallQueue::begin(const OperationPtr& operation, const GatePtr& parent) {
  if (!empty()) {
    insert({operation, nullptr}, parent);
    entries_.pop_front();
    return;
  }
  operation->sequence.store(take_number(), std::memory_order_relaxed);
}

// Under the engine's lock, so no two threads take one at once.
uint64_t CallQueue::take_number() {
  const uint64_t number = next_.load(std::memory_order_relaxed);
  next_.store(number + 1, std::memory_order_release);
  return number;
}

void CallQueue::settle(bool failed) {
  while (!empty() && !entries_.front().operation) {
    const auto& gate = entries_.front().gate;
    if (gate && !failed && !gate->open.load(std::memory_order_acquire)) return;
    entries_.pop_front();
  }
}

bool CallQueue::holds_back() const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [](const Entry& one) { return one.gate && !one.gate->open; });
}

void CallQueue::give_way(const GatePtr& gate, const Operation& operation) {
  bool behind = false;
  for (const auto& entry : entries_) {
    behind |= entry.gate == gate;
    if (behind && entry.operation.get() == &operation) gate->open = true;
  }
}

}  // namespace pycomm
