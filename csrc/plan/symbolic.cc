// SPDX-License-Identifier: MIT
#include "plan/symbolic.h"

#include <algorithm>

#include "base/error.h"
#include "plan/validate.h"

namespace pycomm {

Symbolic::Symbolic(const PlanSet& plans, const Graph& graph)
    : plans_(plans),
      graph_(graph),
      meaning_(plans[0]),
      expressions_(static_cast<int>(plans.size())) {
  for (const Plan& plan : plans_) {
    chunks_.emplace_back(static_cast<size_t>(plan.work_chunks) + plan.scratch_like.size());
    for (size_t s = 0; s < plan.scratch_like.size(); ++s) {
      if (plan.scratch_like[s] != kToken) continue;
      chunks_.back()[static_cast<size_t>(plan.work_chunks) + s].value = Expressions::kTokenValue;
    }
  }
}

Symbolic::Chunk& Symbolic::at(int rank, ChunkRef ref) {
  const auto r = static_cast<size_t>(rank);
  const int base = ref.buffer == Buffer::work ? 0 : plans_[r].work_chunks;
  return chunks_[r][static_cast<size_t>(base + ref.index)];
}

std::string Symbolic::run_call(const std::vector<int>& order) {
  load_inputs();
  for (const int i : order) {
    const auto error = run(graph_.instructions[static_cast<size_t>(i)]);
    if (!error.empty()) return error;
  }
  const auto error = check_outputs();
  first_piece_ += meaning_.pieces();
  return error;
}

void Symbolic::load_inputs() {
  for (const Plan& plan : plans_) {
    for (int c = 0; c < plan.work_chunks; ++c) {
      Chunk& chunk = at(plan.rank, {Buffer::work, c});
      chunk.writer = -1;
      if (!meaning_.is_input(plan.rank, c)) continue;
      chunk.value = expressions_.leaf(plan.rank, first_piece_ + meaning_.piece(plan.rank, c));
    }
  }
}

// A send's value is read by the instruction that receives it: the order puts nothing in between.
std::string Symbolic::run(const Instruction& instruction) {
  const Plan& plan = plans_[static_cast<size_t>(instruction.rank)];
  const auto step = static_cast<size_t>(instruction.first_step);
  switch (instruction.op) {
    case Opcode::send:
      if (at(plan.rank, plan.steps[step].chunk).value != Expressions::kNothing) return {};
      return str(describe(plan, step), ": the chunk holds nothing yet");
    case Opcode::recv:
    case Opcode::recv_reduce:
      return run_receive(instruction);
    case Opcode::reduce:
    case Opcode::copy:
      return run_local(plan, step);
  }
  return {};
}

std::string Symbolic::run_receive(const Instruction& instruction) {
  const Plan& plan = plans_[static_cast<size_t>(instruction.rank)];
  const auto first = static_cast<size_t>(instruction.first_step);
  const ChunkRef target = plan.steps[first].chunk;
  std::vector<std::pair<int, int>> by_place;  // (rank, value)
  for (size_t i = first; i < first + static_cast<size_t>(instruction.step_count); ++i) {
    const auto number = static_cast<size_t>(graph_.step_begin[static_cast<size_t>(plan.rank)]) + i;
    const int peer = plan.steps[i].peer;
    const Plan& sender = plans_[static_cast<size_t>(peer)];
    const int sent = graph_.partner[number] - graph_.step_begin[static_cast<size_t>(peer)];
    const ChunkRef source = sender.steps[static_cast<size_t>(sent)].chunk;
    if (piece_of(sender, meaning_, source) != piece_of(plan, meaning_, target)) {
      return str(describe(plan, i), ": meets ", describe(sender, static_cast<size_t>(sent)),
                 ", a chunk of another size");
    }
    by_place.emplace_back(peer, at(peer, source).value);
  }
  if (instruction.op == Opcode::recv) {
    at(plan.rank, target) = {by_place[0].second, instruction.first_step};
    return {};
  }
  by_place.emplace_back(plan.rank, at(plan.rank, target).value);
  std::ranges::sort(by_place);
  std::vector<int> operands;
  for (const auto& [place, value] : by_place) operands.push_back(value);
  return add(plan, first + static_cast<size_t>(instruction.step_count) - 1, operands);
}

std::string Symbolic::run_local(const Plan& plan, size_t step) {
  const Step& s = plan.steps[step];
  const int source = at(plan.rank, s.source).value;
  if (s.op == Opcode::copy) {
    if (source == Expressions::kNothing) {
      return str(describe(plan, step), ": the source holds nothing yet");
    }
    at(plan.rank, s.chunk) = {source, static_cast<int>(step)};
    return {};
  }
  // The engine adds the lower contributing rank first, so which side is the source does not matter.
  std::vector<int> operands{at(plan.rank, s.chunk).value, source};
  if (expressions_.lowest_rank(operands[0]) > expressions_.lowest_rank(operands[1])) {
    std::swap(operands[0], operands[1]);
  }
  return add(plan, step, operands);
}

std::string Symbolic::add(const Plan& plan, size_t step, const std::vector<int>& operands) {
  const Step& s = plan.steps[step];
  const auto error = expressions_.why_not_sum(operands);
  if (!error.empty()) return str(describe(plan, step), ": ", error);
  const int value = expressions_.sum(operands);
  at(plan.rank, s.chunk) = {value, static_cast<int>(step)};
  if (s.completes == expressions_.is_whole(value)) return {};
  return str(describe(plan, step), ": marked as ", s.completes ? "complete" : "incomplete",
             ", but the chunk now holds ", expressions_.describe(value));
}

std::string Symbolic::check_outputs() {
  std::vector<int> agreed(static_cast<size_t>(meaning_.pieces()), Expressions::kNothing);
  for (const Plan& plan : plans_) {
    for (int c = 0; c < plan.work_chunks; ++c) {
      const auto error = check_output(plan, c, &agreed);
      if (!error.empty()) return error;
    }
  }
  return {};
}

// Input chunks that are no outputs need no look: `validate` rejects every write to them.
std::string Symbolic::check_output(const Plan& plan, int chunk, std::vector<int>* agreed) {
  if (!meaning_.is_output(plan.rank, chunk)) return {};
  const Chunk& output = at(plan.rank, {Buffer::work, chunk});
  const int piece = meaning_.piece(plan.rank, chunk);
  const std::string last =
      output.writer < 0 ? str("rank ", plan.rank, " has no step that writes work[", chunk, "]")
                        : describe(plan, static_cast<size_t>(output.writer));
  const auto wrong = [&](const std::string& expected) {
    return str(last, ": at the end work[", chunk, "] holds ", expressions_.describe(output.value),
               ", expected ", expected);
  };
  if (!meaning_.sums()) {
    const int expected = expressions_.leaf(meaning_.owner(piece), first_piece_ + piece);
    return output.value == expected ? std::string() : wrong(expressions_.describe(expected));
  }
  if (output.value == Expressions::kNothing || !expressions_.is_whole(output.value) ||
      expressions_.piece(output.value) != first_piece_ + piece) {
    return wrong(str("piece ", first_piece_ + piece, " of all ranks"));
  }
  int& first = (*agreed)[static_cast<size_t>(piece)];
  if (first == Expressions::kNothing) first = output.value;
  if (first == output.value) return {};
  return wrong("the order of addition of the ranks before it: last bits would differ");
}

}  // namespace pycomm
