// SPDX-License-Identifier: MIT
#include "plan/plan.h"

#include <array>
#include <cstdio>
#include <string_view>

#include "base/error.h"

namespace pycomm {
namespace {

constexpr std::array<std::string_view, 5> kOpcodes{"send", "recv", "recv_reduce", "reduce", "copy"};

// Plans may come from users, so a code outside the table prints instead of reading past it.
std::string_view name_of(Opcode op) {
  const auto code = static_cast<size_t>(op);
  return code < kOpcodes.size() ? kOpcodes[code] : "unknown opcode";
}

std::string to_string(const ChunkRef& chunk) {
  return str(chunk.buffer == Buffer::work ? "work[" : "scratch[", chunk.index, "]");
}

// Everything of a step but its opcode.
std::string operands(const Step& step) {
  std::string text;
  switch (step.op) {
    case Opcode::send:
      text = str(to_string(step.chunk), " to ", step.peer);
      break;
    case Opcode::recv:
    case Opcode::recv_reduce:
      text = str(to_string(step.chunk), " from ", step.peer);
      break;
    case Opcode::reduce:
      text = str(to_string(step.source), " into ", to_string(step.chunk));
      break;
    case Opcode::copy:
      text = str(to_string(step.source), " to ", to_string(step.chunk));
      break;
  }
  return step.completes ? text + ", completes" : text;
}

bool is_rooted(Collective collective) {
  return collective == Collective::broadcast || collective == Collective::reduce ||
         collective == Collective::gather || collective == Collective::scatter;
}

std::string heading(const Plan& plan) {
  std::string text = str(name_of(plan.collective), " ", plan.algorithm, ", rank ", plan.rank,
                         " of ", plan.world_size);
  if (is_rooted(plan.collective)) text += str(", root ", plan.root);
  text += str(", work chunks: ", plan.work_chunks);
  if (!plan.scratch_like.empty()) text += ", scratch chunks like:";
  for (const int like : plan.scratch_like) {
    text += like == kToken ? std::string(" token") : str(" work[", like, "]");
  }
  return text;
}

}  // namespace

std::string to_string(const Step& step) { return str(name_of(step.op), " ", operands(step)); }

std::string to_string(const Plan& plan) {
  std::string text = heading(plan) + "\n";
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    char columns[64];
    std::snprintf(columns, sizeof columns, "%4zu  %-11.20s  ", i, name_of(step.op).data());
    text += columns + operands(step) + "\n";
  }
  return text;
}

// A plan that names no work chunk at all, such as a barrier, fits behind every other. When `first`
// ends and `second` begins with recv_reduce into the same chunk, the two become one fold.
Plan concatenate(Plan first, const Plan& second) {
  PYCOMM_ASSERT(first.world_size == second.world_size && first.rank == second.rank, "rank ",
                first.rank, " of ", first.world_size, " meets rank ", second.rank, " of ",
                second.world_size);
  PYCOMM_ASSERT(second.work_chunks == 0 || second.work_chunks == first.work_chunks,
                first.work_chunks, " work chunks meet ", second.work_chunks);
  const int offset = static_cast<int>(first.scratch_like.size());
  const auto moved = [offset](ChunkRef chunk) {
    if (chunk.buffer == Buffer::scratch) chunk.index += offset;
    return chunk;
  };
  for (Step step : second.steps) {
    step.chunk = moved(step.chunk);
    step.source = moved(step.source);
    first.steps.push_back(step);
  }
  first.scratch_like.insert(first.scratch_like.end(), second.scratch_like.begin(),
                            second.scratch_like.end());
  return first;
}

}  // namespace pycomm
