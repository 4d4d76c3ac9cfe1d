// SPDX-License-Identifier: MIT
#include "plan/validate.h"

#include "base/error.h"
#include "plan/fold.h"

namespace pycomm {
namespace {

// What is wrong with a plan as a whole; `first` is rank 0's.
std::string header_error(const Plan& plan, const Plan& first, int rank) {
  const auto wrong = [&](auto what, auto got, auto expected) {
    return str("rank ", rank, ": ", what, " is ", got, ", expected ", expected);
  };
  if (plan.rank != rank) return wrong("rank", plan.rank, rank);
  if (plan.world_size != first.world_size) {
    return wrong("world_size", plan.world_size, first.world_size);
  }
  if (plan.collective != first.collective) {
    return wrong("collective", name_of(plan.collective), name_of(first.collective));
  }
  if (plan.algorithm != first.algorithm) {
    return wrong("algorithm", plan.algorithm, first.algorithm);
  }
  if (plan.root != first.root) return wrong("root", plan.root, first.root);
  if (plan.work_chunks != first.work_chunks) {
    return wrong("work_chunks", plan.work_chunks, first.work_chunks);
  }
  for (const int like : plan.scratch_like) {
    if (like != kToken && (like < 0 || like >= plan.work_chunks)) {
      return wrong("a scratch chunk's size", str("that of work[", like, "]"),
                   str("one of work[0] to work[", plan.work_chunks - 1, "], or a token"));
    }
  }
  return {};
}

std::string set_error(const PlanSet& plans) {
  if (plans.empty()) return "no plans";
  const Plan& first = plans[0];
  const int world_size = static_cast<int>(plans.size());
  if (first.world_size != world_size) {
    return str("rank 0: world_size is ", first.world_size, ", but there are ", world_size,
               " plans");
  }
  if (first.root < 0 || first.root >= world_size) return str("rank 0: no such root: ", first.root);
  const int chunks = Meaning::work_chunks_of(first.collective, world_size);
  if (chunks == -2) return str(name_of(first.collective), " is not carried out by plans");
  if (chunks == -1 ? first.work_chunks < 1 : first.work_chunks != chunks) {
    return str("rank 0: ", first.work_chunks, " work chunks do not fit ",
               name_of(first.collective));
  }
  for (int rank = 0; rank < world_size; ++rank) {
    const auto error = header_error(plans[static_cast<size_t>(rank)], first, rank);
    if (!error.empty()) return error;
  }
  return {};
}

bool exists(const Plan& plan, const Meaning& meaning, ChunkRef chunk) {
  if (chunk.index < 0) return false;
  if (chunk.buffer == Buffer::scratch) {
    return chunk.index < static_cast<int>(plan.scratch_like.size());
  }
  return chunk.buffer == Buffer::work && chunk.index < plan.work_chunks &&
         (meaning.is_input(plan.rank, chunk.index) || meaning.is_output(plan.rank, chunk.index));
}

// What is wrong with one step, without looking at others.
std::string step_error(const Plan& plan, const Meaning& meaning, const Step& step) {
  const bool local = step.op == Opcode::reduce || step.op == Opcode::copy;
  const bool adds = step.op == Opcode::reduce || step.op == Opcode::recv_reduce;
  if (step.op > Opcode::copy) return "no such opcode";
  if (!local && (step.peer < 0 || step.peer >= plan.world_size)) return "no such peer";
  if (!local && step.peer == plan.rank) return "a rank is not its own peer; use copy or reduce";
  if (!exists(plan, meaning, step.chunk)) return "no such chunk on this rank";
  if (local && !exists(plan, meaning, step.source)) return "no such source chunk on this rank";
  if (local && step.source == step.chunk) return "source and target are the same chunk";
  if (step.op != Opcode::send && step.chunk.buffer == Buffer::work &&
      !meaning.is_output(plan.rank, step.chunk.index)) {
    return "writes an input chunk";
  }
  const int piece = piece_of(plan, meaning, step.chunk);
  if (adds && piece == kToken) return "a token has no value to add";
  if (local && piece_of(plan, meaning, step.source) != piece) {
    return "source and target differ in size";
  }
  if (step.completes && !adds) return "only recv_reduce and reduce can complete a sum";
  return {};
}

// Steps first .. end-1 are one fold.
std::string fold_error(const Plan& plan, size_t first, size_t end, std::vector<bool>* seen) {
  std::string error;
  for (size_t i = first; i < end && error.empty(); ++i) {
    const auto peer = static_cast<size_t>(plan.steps[i].peer);
    if ((*seen)[peer]) {
      error = str(describe(plan, i), ": a fold takes one value from each peer, this is the second");
    } else if (plan.steps[i].completes && i + 1 < end) {
      error = str(describe(plan, i), ": completes belongs on the last step of its fold");
    }
    (*seen)[peer] = true;
  }
  for (size_t i = first; i < end; ++i) (*seen)[static_cast<size_t>(plan.steps[i].peer)] = false;
  return error;
}

}  // namespace

std::string describe(const Plan& plan, size_t step) {
  return str("rank ", plan.rank, " step ", step, " (", to_string(plan.steps[step]), ")");
}

int piece_of(const Plan& plan, const Meaning& meaning, ChunkRef chunk) {
  const int like = chunk.buffer == Buffer::work
                       ? chunk.index
                       : plan.scratch_like[static_cast<size_t>(chunk.index)];
  return like == kToken ? kToken : meaning.piece(plan.rank, like);
}

std::string validate(const PlanSet& plans) {
  if (auto error = set_error(plans); !error.empty()) return error;
  const Meaning meaning(plans[0]);
  std::vector<bool> seen(plans.size(), false);
  for (const Plan& plan : plans) {
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      const auto error = step_error(plan, meaning, plan.steps[i]);
      if (!error.empty()) return str(describe(plan, i), ": ", error);
    }
    for (size_t first = 0, end = 0; first < plan.steps.size(); first = end) {
      end = fold_end(plan.steps, first);
      if (plan.steps[first].op != Opcode::recv_reduce) continue;
      if (auto error = fold_error(plan, first, end, &seen); !error.empty()) return error;
    }
  }
  return {};
}

}  // namespace pycomm
