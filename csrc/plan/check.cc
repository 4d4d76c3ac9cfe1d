// SPDX-License-Identifier: MIT
#include "plan/check.h"

#include <cstdint>

#include "base/error.h"
#include "plan/graph.h"
#include "plan/symbolic.h"
#include "plan/validate.h"

namespace pycomm {
namespace {

// In list order the first step of a rank that never completes waits for nobody but its peers, so
// these steps are what a debugger would show.
std::string deadlock_error(const PlanSet& plans, const Graph& graph,
                           const std::vector<int>& order) {
  std::vector<bool> completed(graph.instructions.size(), false);
  for (const int i : order) completed[static_cast<size_t>(i)] = true;
  std::string text = "deadlock without buffering:";
  int last_rank = -1;
  int named = 0;
  for (size_t i = 0; i < completed.size() && named < 4; ++i) {
    const Instruction& instruction = graph.instructions[i];
    if (completed[i] || instruction.rank == last_rank) continue;
    last_rank = instruction.rank;
    text += str(named++ ? ", " : " ", describe(plans[static_cast<size_t>(last_rank)],
                                               static_cast<size_t>(instruction.first_step)));
  }
  return text + (named == 1 ? " waits" : " wait") + " for ever";
}

// For each instruction the set of ranks that must have begun before it can complete, with unlimited
// buffering: the fewest waits there can be. Lanes order things too, but only what one rank does.
class Causes {
 public:
  Causes(size_t instructions, size_t ranks)
      : words_((ranks + 63) / 64), sets_(instructions * words_, 0) {}

  void add_rank(int i, int rank) {
    sets_[static_cast<size_t>(i) * words_ + static_cast<size_t>(rank) / 64] |= uint64_t{1}
                                                                               << (rank % 64);
  }
  void add_all_of(int i, int other) {
    for (size_t w = 0; w < words_; ++w) {
      sets_[static_cast<size_t>(i) * words_ + w] |= sets_[static_cast<size_t>(other) * words_ + w];
    }
  }
  bool has(int i, int rank) const {
    return sets_[static_cast<size_t>(i) * words_ + static_cast<size_t>(rank) / 64] >> (rank % 64) &
           1;
  }

 private:
  size_t words_;
  std::vector<uint64_t> sets_;
};

// That no rank finishes unless all have begun is what turns a call that ranks disagree on into an
// error on all of them: every frame carries the operation's signature.
std::string causality_error(const PlanSet& plans, const Graph& graph,
                            const std::vector<int>& order) {
  const int ranks = static_cast<int>(plans.size());
  const int count = static_cast<int>(graph.instructions.size());
  // Behind the instructions: one set a rank, for its end.
  Causes causes(static_cast<size_t>(count + ranks), plans.size());
  for (int rank = 0; rank < ranks; ++rank) causes.add_rank(count + rank, rank);
  for (const int i : order) {
    const Instruction& instruction = graph.instructions[static_cast<size_t>(i)];
    causes.add_rank(i, instruction.rank);
    if (instruction.op == Opcode::recv || instruction.op == Opcode::recv_reduce) {
      const int step =
          graph.step_begin[static_cast<size_t>(instruction.rank)] + instruction.first_step;
      for (int s = step; s < step + instruction.step_count; ++s) {
        const int sent = graph.partner[static_cast<size_t>(s)];
        causes.add_all_of(i, graph.instruction_of[static_cast<size_t>(sent)]);
      }
    }
    for (const int later : graph.hazards.at(i)) causes.add_all_of(later, i);
    causes.add_all_of(count + instruction.rank, i);
  }
  for (const Plan& plan : plans) {
    for (int other = 0; other < ranks; ++other) {
      if (causes.has(count + plan.rank, other)) continue;
      const std::string last = plan.steps.empty()
                                   ? str("rank ", plan.rank, " has no step")
                                   : describe(plan, plan.steps.size() - 1) + " is the last";
      return str(last, ": the rank can finish before rank ", other, " has begun");
    }
  }
  return {};
}

}  // namespace

std::string check(const PlanSet& plans) {
  if (auto error = validate(plans); !error.empty()) return error;
  Graph graph;
  if (auto error = build_graph(plans, &graph); !error.empty()) return error;
  const std::vector<int> order = rendezvous_order(graph);
  if (order.size() < graph.instructions.size()) return deadlock_error(plans, graph, order);
  // Every lane is empty after a call, for each send has met its recv. So a rank may begin the
  // second call while others are still in the first, and the order of the calls' steps still does
  // not matter.
  Symbolic symbolic(plans, graph);
  for (const char* call : {"", "second call: "}) {
    if (auto error = symbolic.run_call(order); !error.empty()) return call + error;
  }
  return causality_error(plans, graph, order);
}

}  // namespace pycomm
