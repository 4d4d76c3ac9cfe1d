// SPDX-License-Identifier: MIT
#include "engine/callback_order.h"

#include "base/limits.h"

namespace pycomm {
namespace {

thread_local const CallbackOrder* here_order = nullptr;
thread_local int here_depth = 0;

}  // namespace

void CallbackOrder::detach() {
  const std::lock_guard lock(wake_mutex_);
  wake_ = nullptr;
}

CallbackOrder::GatePtr CallbackOrder::close(int depth) {
  const std::lock_guard lock(mutex_);
  closed_.push_back(std::make_shared<Gate>(Gate{depth, std::chrono::steady_clock::now()}));
  closed_count_ = closed_.size();
  return closed_.back();
}

void CallbackOrder::open(const GatePtr& gate) {
  {
    const std::lock_guard lock(mutex_);
    closed_.remove(gate);
    closed_count_ = closed_.size();
  }
  const std::lock_guard lock(wake_mutex_);
  if (wake_) wake_();
}

bool CallbackOrder::passes(int depth) {
  if (closed_count_ == 0) return true;
  const std::lock_guard lock(mutex_);
  const auto now = std::chrono::steady_clock::now();
  for (const auto& gate : closed_) {
    if (depth <= gate->depth && now - gate->since < kCallbackGatePatience) return false;
  }
  return true;
}

int CallbackOrder::depth_here() const { return here_order == this ? here_depth : 0; }

CallbackOrder::Scope::Scope(std::shared_ptr<CallbackOrder> order, GatePtr gate)
    : order_(std::move(order)),
      gate_(std::move(gate)),
      outer_order_(here_order),
      outer_depth_(here_depth) {
  here_order = order_.get();
  here_depth = gate_->depth + 1;
}

CallbackOrder::Scope::~Scope() {
  here_order = outer_order_;
  here_depth = outer_depth_;
  order_->open(gate_);
}

}  // namespace pycomm
