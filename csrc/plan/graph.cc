// SPDX-License-Identifier: MIT
#include "plan/graph.h"

#include "base/error.h"
#include "plan/fold.h"
#include "plan/validate.h"

namespace pycomm {
namespace {

using Pairs = std::vector<std::pair<int, int>>;

// Collects the edges inside one rank.
class RankEdges {
 public:
  RankEdges(const Plan& plan, Pairs* hazards, Pairs* lanes)
      : plan_(plan),
        chunks_(static_cast<size_t>(plan.work_chunks) + plan.scratch_like.size()),
        last_on_lane_(2 * static_cast<size_t>(plan.world_size), -1),
        hazards_(hazards),
        lanes_(lanes) {}

  void add(int instruction, const Step& step) {
    const bool local = step.op == Opcode::reduce || step.op == Opcode::copy;
    if (local) read(instruction, step.source);
    if (step.op == Opcode::send) {
      read(instruction, step.chunk);
    } else {
      write(instruction, step.chunk);
    }
    if (local) return;
    const size_t direction = step.op == Opcode::send ? 0 : 1;
    int& last = last_on_lane_[2 * static_cast<size_t>(step.peer) + direction];
    if (last >= 0 && last != instruction) lanes_->emplace_back(last, instruction);
    last = instruction;
  }

 private:
  // Invariant: whoever reads next waits for `writer`; whoever writes next for `writer` and
  // `readers`.
  struct Chunk {
    int writer = -1;
    std::vector<int> readers;
  };

  Chunk& chunk(ChunkRef ref) {
    const int base = ref.buffer == Buffer::work ? 0 : plan_.work_chunks;
    return chunks_[static_cast<size_t>(base + ref.index)];
  }
  void read(int instruction, ChunkRef ref) {
    Chunk& c = chunk(ref);
    if (c.writer >= 0) hazards_->emplace_back(c.writer, instruction);
    c.readers.push_back(instruction);
  }
  void write(int instruction, ChunkRef ref) {
    Chunk& c = chunk(ref);
    if (c.writer == instruction) return;  // a further step of the same fold
    if (c.writer >= 0) hazards_->emplace_back(c.writer, instruction);
    for (const int reader : c.readers) hazards_->emplace_back(reader, instruction);
    c.readers.clear();
    c.writer = instruction;
  }

  const Plan& plan_;
  std::vector<Chunk> chunks_;
  std::vector<int> last_on_lane_;  // 2 * peer + direction -> instruction
  Pairs* hazards_;
  Pairs* lanes_;
};

// The i-th send of a lane meets the i-th recv, since lanes are FIFO.
std::string pair_steps(const PlanSet& plans, Graph* graph) {
  const int p = static_cast<int>(plans.size());
  Pairs sends, recvs;
  for (const Plan& plan : plans) {
    int number = graph->step_begin[static_cast<size_t>(plan.rank)];
    for (const Step& step : plan.steps) {
      if (step.op == Opcode::send) sends.emplace_back(plan.rank * p + step.peer, number);
      if (step.op == Opcode::recv || step.op == Opcode::recv_reduce) {
        recvs.emplace_back(step.peer * p + plan.rank, number);
      }
      ++number;
    }
  }
  const auto lane_count = static_cast<size_t>(p) * static_cast<size_t>(p);
  const Lists lane_sends(lane_count, sends), lane_recvs(lane_count, recvs);
  for (int lane = 0; lane < p * p; ++lane) {
    const auto out = lane_sends.at(lane), in = lane_recvs.at(lane);
    const size_t both = std::min(out.size(), in.size());
    if (out.size() != in.size()) {
      const int rank = out.size() > both ? lane / p : lane % p;
      const int lonely = out.size() > both ? out[both] : in[both];
      const int step = lonely - graph->step_begin[static_cast<size_t>(rank)];
      return str(describe(plans[static_cast<size_t>(rank)], static_cast<size_t>(step)),
                 ": no step of the peer answers it");
    }
    for (size_t i = 0; i < both; ++i) {
      graph->partner[static_cast<size_t>(out[i])] = in[i];
      graph->partner[static_cast<size_t>(in[i])] = out[i];
    }
  }
  return {};
}

}  // namespace

Lists::Lists(size_t count, const std::vector<std::pair<int, int>>& pairs)
    : begin_(count + 1, 0), items_(pairs.size()) {
  for (const auto& [list, item] : pairs) ++begin_[static_cast<size_t>(list) + 1];
  for (size_t i = 0; i < count; ++i) begin_[i + 1] += begin_[i];
  std::vector<int> next(begin_.begin(), begin_.end() - 1);
  for (const auto& [list, item] : pairs) {
    items_[static_cast<size_t>(next[static_cast<size_t>(list)]++)] = item;
  }
}

std::string build_graph(const PlanSet& plans, Graph* graph) {
  Pairs hazards, lanes;
  for (const Plan& plan : plans) {
    graph->step_begin.push_back(static_cast<int>(graph->instruction_of.size()));
    RankEdges edges(plan, &hazards, &lanes);
    for (size_t first = 0, end = 0; first < plan.steps.size(); first = end) {
      end = fold_end(plan.steps, first);
      const int instruction = static_cast<int>(graph->instructions.size());
      graph->instructions.push_back({plan.rank, static_cast<int>(first),
                                     static_cast<int>(end - first), plan.steps[first].op});
      for (size_t i = first; i < end; ++i) {
        edges.add(instruction, plan.steps[i]);
        graph->instruction_of.push_back(instruction);
      }
    }
  }
  graph->hazards = Lists(graph->instructions.size(), hazards);
  graph->lanes = Lists(graph->instructions.size(), lanes);
  graph->partner.assign(graph->instruction_of.size(), -1);
  return pair_steps(plans, graph);
}

std::vector<int> rendezvous_order(const Graph& graph) {
  const int count = static_cast<int>(graph.instructions.size());
  // Invariant: waiting[i] counts what instruction i still waits for; a receiving instruction also
  // counts the sends that it takes, each until that send is ready.
  std::vector<int> waiting(static_cast<size_t>(count), 0);
  std::vector<int> ready, order;
  order.reserve(static_cast<size_t>(count));
  const auto step_of = [&](const Instruction& instruction) {
    return static_cast<size_t>(graph.step_begin[static_cast<size_t>(instruction.rank)] +
                               instruction.first_step);
  };
  for (int i = 0; i < count; ++i) {
    for (const int later : graph.hazards.at(i)) ++waiting[static_cast<size_t>(later)];
    for (const int later : graph.lanes.at(i)) ++waiting[static_cast<size_t>(later)];
    const auto& instruction = graph.instructions[static_cast<size_t>(i)];
    if (instruction.op == Opcode::recv || instruction.op == Opcode::recv_reduce) {
      waiting[static_cast<size_t>(i)] += instruction.step_count;
    }
  }
  const auto release = [&](int i) {
    if (--waiting[static_cast<size_t>(i)] == 0) ready.push_back(i);
  };
  const auto complete = [&](int i) {
    order.push_back(i);
    for (const int later : graph.hazards.at(i)) release(later);
    for (const int later : graph.lanes.at(i)) release(later);
  };
  for (int i = count - 1; i >= 0; --i) {
    if (waiting[static_cast<size_t>(i)] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    const int i = ready.back();
    ready.pop_back();
    const auto& instruction = graph.instructions[static_cast<size_t>(i)];
    const size_t step = step_of(instruction);
    if (instruction.op == Opcode::send) {
      release(graph.instruction_of[static_cast<size_t>(graph.partner[step])]);
      continue;
    }
    if (instruction.op == Opcode::recv || instruction.op == Opcode::recv_reduce) {
      for (size_t s = 0; s < static_cast<size_t>(instruction.step_count); ++s) {
        complete(graph.instruction_of[static_cast<size_t>(graph.partner[step + s])]);
      }
    }
    complete(i);
  }
  return order;
}

}  // namespace pycomm
