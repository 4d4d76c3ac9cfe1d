// SPDX-License-Identifier: MIT
#include "plan/cost.h"

#include <algorithm>

#include "base/error.h"
#include "plan/graph.h"
#include "plan/meaning.h"
#include "plan/validate.h"

namespace pycomm {
namespace {

// Bytes of a chunk. Collectives that cut one tensor deal its bytes evenly to their chunks; in the
// others every chunk is a block.
size_t chunk_bytes(const Plan& plan, ChunkRef chunk, size_t bytes) {
  const int like = chunk.buffer == Buffer::work
                       ? chunk.index
                       : plan.scratch_like[static_cast<size_t>(chunk.index)];
  if (like == kToken) return 0;
  if (Meaning::work_chunks_of(plan.collective, plan.world_size) >= 0) return bytes;
  const auto i = static_cast<size_t>(like), count = static_cast<size_t>(plan.work_chunks);
  return bytes / count + (i < bytes % count ? 1 : 0);
}

// Messages on the longest chain in which each message waits for the one before. Waiting for a turn
// on a lane does not count: messages to one peer follow each other without waiting for an answer.
int longest_chain(const Graph& graph) {
  const auto order = rendezvous_order(graph);
  PYCOMM_ASSERT(order.size() == graph.instructions.size(), "the plans deadlock");
  // Invariant: depth[i] is the number of messages behind instruction i, of those handled so far.
  std::vector<int> depth(graph.instructions.size(), 0);
  for (const int i : order) {
    const Instruction& instruction = graph.instructions[static_cast<size_t>(i)];
    int& mine = depth[static_cast<size_t>(i)];
    if (instruction.op == Opcode::recv || instruction.op == Opcode::recv_reduce) {
      const int step =
          graph.step_begin[static_cast<size_t>(instruction.rank)] + instruction.first_step;
      for (int s = step; s < step + instruction.step_count; ++s) {
        const int sent = graph.partner[static_cast<size_t>(s)];
        const int sender = graph.instruction_of[static_cast<size_t>(sent)];
        mine = std::max(mine, depth[static_cast<size_t>(sender)] + 1);
      }
    }
    for (const int later : graph.hazards.at(i)) {
      depth[static_cast<size_t>(later)] = std::max(depth[static_cast<size_t>(later)], mine);
    }
  }
  return depth.empty() ? 0 : *std::max_element(depth.begin(), depth.end());
}

}  // namespace

PlanCost cost(const PlanSet& plans, size_t bytes, const LinkCost& link) {
  const auto invalid = validate(plans);
  PYCOMM_ASSERT(invalid.empty(), invalid);
  Graph graph;
  const auto unpaired = build_graph(plans, &graph);
  PYCOMM_ASSERT(unpaired.empty(), unpaired);

  PlanCost result;
  result.steps = longest_chain(graph);
  for (const Plan& plan : plans) {
    size_t sent = 0, reduced = 0;
    for (const Step& step : plan.steps) {
      const size_t size = chunk_bytes(plan, step.chunk, bytes);
      if (step.op == Opcode::send) sent += size;
      if (step.op == Opcode::recv_reduce || step.op == Opcode::reduce) reduced += size;
    }
    result.bytes_sent_max = std::max(result.bytes_sent_max, sent);
    result.bytes_reduced_max = std::max(result.bytes_reduced_max, reduced);
  }
  result.seconds = result.steps * link.alpha_s +
                   static_cast<double>(result.bytes_sent_max) * link.beta_s_per_byte +
                   static_cast<double>(result.bytes_reduced_max) * link.gamma_s_per_byte;
  return result;
}

}  // namespace pycomm
