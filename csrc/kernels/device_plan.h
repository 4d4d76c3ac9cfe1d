// SPDX-License-Identifier: MIT
// A plan of csrc/plan as a GPU's kernel reads it: the steps of one rank in a table small enough to
// be a kernel's argument, so that nothing has to be copied to the device first.
//
// engine/lower_plan.h makes it. Chunks are numbers: work chunks first, the tensor cut as
// engine/cut.h cuts it, then scratch chunks, each as long as a work chunk. A value; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_peers.h"

namespace pycomm {

inline constexpr int kPlanStepsMax = 96;
inline constexpr int kPlanOperandsMax = 96;
inline constexpr int kPlanScratchMax = 16;

enum class PlanOp : uint8_t { send, recv, fold, reduce, copy };

struct PlanStep {
  PlanOp op;
  uint8_t completes;  // avg divides here
  int8_t peer;        // send, recv. reduce: 1 when the source comes first in the sum
  uint8_t operand_count;
  uint8_t target, source;  // chunks
  uint16_t first_operand;  // fold: ranks in the order of the sum, this rank for `source`
};

struct DevicePlan {
  int16_t rank, world_size;
  int16_t work_chunks, step_count, scratch_count;
  uint8_t scratch_like[kPlanScratchMax];  // work chunks
  uint8_t operands[kPlanOperandsMax];
  PlanStep steps[kPlanStepsMax];
};

// One call of a plan. Everything as in AllReduceTask, but the tensor is input and output.
struct PlanTask {
  PeerGroup group;
  const DevicePlan* plan = nullptr;  // host memory, read before the launch returns
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  int divisor = 1;
  void* tensor = nullptr;
  size_t count = 0;
  void* scratch = nullptr;  // plan_scratch_bytes() of this rank's own device memory
  uint32_t signature = 0;
};

size_t plan_scratch_bytes(const DevicePlan& plan, size_t count, DType dtype);
// Lanes for pieces of up to `piece_bytes`; any size works, larger ones meet less often.
size_t plan_lanes_bytes(int world_size, size_t piece_bytes);

}  // namespace pycomm
