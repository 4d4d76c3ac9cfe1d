// SPDX-License-Identifier: MIT
#include "engine/lower_plan.h"

#include <array>

#include "base/error.h"

namespace pycomm {
namespace {

using Kind = Instruction::Kind;

PlanOp op_of(Kind kind) {
  switch (kind) {
    case Kind::send:
      return PlanOp::send;
    case Kind::recv:
      return PlanOp::recv;
    case Kind::fold:
      return PlanOp::fold;
    case Kind::reduce:
      return PlanOp::reduce;
    case Kind::copy:
      return PlanOp::copy;
  }
  return PlanOp::copy;
}

std::string why_not(const Program& program) {
  const Plan& plan = program.plan;
  const bool one_tensor = plan.collective == Collective::all_reduce ||
                          plan.collective == Collective::broadcast ||
                          plan.collective == Collective::reduce;
  if (!one_tensor) return str(name_of(plan.collective), " has more than one tensor");
  if (program.links.codec) return "its chunks travel encoded";
  if (plan.world_size > kPeersMax) {
    return str("it is for ", plan.world_size, " ranks, at most ", kPeersMax, " can be peers");
  }
  if (plan.scratch_like.size() > kPlanScratchMax) {
    return str("it has ", plan.scratch_like.size(), " scratch chunks, expected at most ",
               kPlanScratchMax);
  }
  for (const int like : plan.scratch_like) {
    if (like == kToken) return "it passes tokens";
  }
  if (program.instructions.size() > kPlanStepsMax || plan.work_chunks > 200) {
    return str("it has ", program.instructions.size(), " steps and ", plan.work_chunks,
               " chunks, expected at most ", kPlanStepsMax, " and 200");
  }
  return "";
}

// A simulated run: how far each rank is, and how many pieces each lane has carried.
struct Run {
  std::array<int, kPeersMax> step{}, round{};
  std::array<std::array<int, kPeersMax>, kPeersMax> sent{}, taken{};  // from, to

  // Whether rank's next step could be done; it is then.
  bool advance(const DevicePlan& plan, int slots) {
    const auto me = static_cast<size_t>(plan.rank);
    const PlanStep& next = plan.steps[step[me]];
    const auto peer = static_cast<size_t>(next.peer);
    const auto has_come = [&](size_t from) { return sent[from][me] > taken[from][me]; };
    if (next.op == PlanOp::send) {
      if (sent[me][peer] - taken[me][peer] >= slots) return false;
      ++sent[me][peer];
    } else if (next.op == PlanOp::recv) {
      if (!has_come(peer)) return false;
      ++taken[peer][me];
    } else if (next.op == PlanOp::fold) {
      const uint8_t* const operands = plan.operands + next.first_operand;
      for (int k = 0; k < next.operand_count; ++k) {
        if (operands[k] != plan.rank && !has_come(operands[k])) return false;
      }
      for (int k = 0; k < next.operand_count; ++k) {
        if (operands[k] != plan.rank) ++taken[operands[k]][me];
      }
    }
    ++step[me];
    return true;
  }
};

}  // namespace

std::string lower_plan(const Program& program, DevicePlan* lowered) {
  if (auto reason = why_not(program); !reason.empty()) return reason;
  const Plan& plan = program.plan;
  *lowered = {};
  lowered->rank = static_cast<int16_t>(plan.rank);
  lowered->world_size = static_cast<int16_t>(plan.world_size);
  lowered->work_chunks = static_cast<int16_t>(plan.work_chunks);
  lowered->scratch_count = static_cast<int16_t>(plan.scratch_like.size());
  for (size_t i = 0; i < plan.scratch_like.size(); ++i) {
    lowered->scratch_like[i] = static_cast<uint8_t>(plan.scratch_like[i]);
  }
  size_t operands = 0;
  for (const Instruction& one : program.instructions) {
    PlanStep& step = lowered->steps[lowered->step_count++];
    step.op = op_of(one.kind);
    step.completes = one.completes;
    step.target = static_cast<uint8_t>(one.target);
    step.source = static_cast<uint8_t>(one.source);
    step.peer = static_cast<int8_t>(one.peer);
    if (one.kind == Kind::reduce) step.peer = one.peer >= 0 && one.peer < plan.rank;
    if (operands + one.operands.size() > kPlanOperandsMax) {
      return str("its sums have more than ", kPlanOperandsMax, " operands");
    }
    step.first_operand = static_cast<uint16_t>(operands);
    step.operand_count = static_cast<uint8_t>(one.operands.size());
    for (const int rank : one.operands) {
      lowered->operands[operands++] = static_cast<uint8_t>(rank);
    }
  }
  return "";
}

std::string check_in_order(const std::vector<DevicePlan>& plans, int slots, int times) {
  Run run;
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t r = 0; r < plans.size(); ++r) {
      if (run.round[r] == times) continue;
      if (run.step[r] == plans[r].step_count) {
        run.step[r] = 0;
        ++run.round[r];
        moved = true;
      } else if (run.advance(plans[r], slots)) {
        moved = true;
      }
    }
  }
  for (size_t r = 0; r < plans.size(); ++r) {
    if (run.round[r] != times) {
      return str("rank ", r, " waits for ever in step ", run.step[r], " of run ", run.round[r]);
    }
    for (size_t to = 0; to < plans.size(); ++to) {
      if (run.sent[r][to] != run.taken[r][to]) {
        return str("rank ", to, " does not take all that rank ", r, " sends it");
      }
    }
  }
  return "";
}

}  // namespace pycomm
