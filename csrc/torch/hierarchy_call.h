// SPDX-License-Identifier: MIT
// One call that goes through a Hierarchy: what the group's engine carries for it, and its legs on a
// stream. See hierarchy.h and prepared_call.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "torch/device_lane.h"
#include "torch/hierarchy.h"
#include "torch/prepared_call.h"

namespace pycomm {

// An all_gather of what each rank was asked for, of numbers alone; it fails with a mismatch where
// they are not the same. For Engine::run() or submit().
std::shared_ptr<Operation> make_announcement(const PreparedCall::Operations& wanted, int rank,
                                             int world_size);

class HierarchyCall final : public PreparedCall {
 public:
  HierarchyCall(std::shared_ptr<Hierarchy> hierarchy, Engine& engine, DeviceLane& lane,
                const Operations& wanted);
  ~HierarchyCall() override;
  Operations operations() const override { return {announcement_, attended_}; }
  // Fails the group and raises its cause when a half throws.
  Failure enqueue(void* stream) override;
  std::function<bool()> passed() const override;

 private:
  void legs(void* stream);

  const std::shared_ptr<Hierarchy> hierarchy_;
  const std::shared_ptr<StreamMarks> marks_;
  Engine& engine_;
  DeviceLane& lane_;
  const Operations wanted_;
  const uint64_t number_;
  const std::shared_ptr<Operation> announcement_, attended_;
  bool enqueued_ = false;
};

}  // namespace pycomm
