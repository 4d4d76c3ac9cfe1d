// SPDX-License-Identifier: MIT
#include "engine/callback_order.h"

namespace pycomm {
namespace {

thread_local const CallbackOrder::Scope* innermost = nullptr;

}  // namespace

void CallbackOrder::detach() {
  const std::lock_guard lock(mutex_);
  wake_ = nullptr;
}

void CallbackOrder::open(const GatePtr& gate) {
  gate->open.store(true, std::memory_order_release);
  const std::lock_guard lock(mutex_);
  if (wake_) wake_();
}

GatePtr CallbackOrder::here() const {
  if (!innermost || innermost->order_.get() != this) return nullptr;
  return innermost->gate_;
}

CallbackOrder::Scope::Scope(std::shared_ptr<CallbackOrder> order, GatePtr gate)
    : order_(std::move(order)), gate_(std::move(gate)), outer_(innermost) {
  innermost = this;
}

CallbackOrder::Scope::~Scope() {
  innermost = outer_;
  order_->open(gate_);
}

}  // namespace pycomm
