// SPDX-License-Identifier: MIT
// From a PlanTask to a launch of the interpreter, the one code for GPU and host; see
// all_reduce_launch.h for what `launch` is. Pure but for what `launch` does; any thread.
#pragma once

#include "kernels/all_reduce_launch.h"
#include "kernels/plan_body.h"

namespace pycomm {
namespace {

inline bool is_possible(const PlanTask& task) {
  if (!is_possible(task.group) || task.plan == nullptr) return false;
  const DevicePlan& plan = *task.plan;
  if (plan.rank != task.group.rank || plan.world_size != task.group.world_size) return false;
  if (lane_slot_bytes(task.group) < kSlotHeaderBytes + 16) return false;
  if (plan.scratch_count > 0 && task.count > 0 && task.scratch == nullptr) return false;
  const bool divides = task.op == ReduceOp::sum || task.op == ReduceOp::avg;
  return task.op != ReduceOp::premul_sum && supports(task.op, task.dtype) && task.divisor >= 1 &&
         (task.divisor == 1 || divides);
}

template <class Launch>
int launch_plan(const PlanTask& task, const Launch& launch, void* stream) {
  if (!is_possible(task)) return kInvalidValue;
  const size_t bytes = task.count * size_of(task.dtype);
  const size_t blocks = peer_blocks(bytes / static_cast<size_t>(task.plan->work_chunks));
  return with_peer_format(task.dtype, [&]<class Format>() {
    PlanBody<Format> body{};
    body.group = task.group;
    body.plan = *task.plan;
    body.tensor = static_cast<char*>(task.tensor);
    body.scratch = static_cast<char*>(task.scratch);
    body.count = task.count;
    body.divisor = task.divisor;
    body.op = task.op;
    body.signature = task.signature;
    return launch.exactly(body, blocks, stream);
  });
}

}  // namespace
}  // namespace pycomm
