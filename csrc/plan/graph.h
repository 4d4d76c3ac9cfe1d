// SPDX-License-Identifier: MIT
// What in a set of plans must wait for what: the rules of plan.h made explicit as edges. Shared by
// `check`, which asks whether the graph can run to its end, and `cost`, which asks for its longest
// path. Values; any thread.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "plan/plan.h"

namespace pycomm {

// Many short lists in two arrays.
class Lists {
 public:
  Lists() = default;
  // Pairs of (list, item); items keep their order within a list.
  Lists(size_t count, const std::vector<std::pair<int, int>>& pairs);
  std::span<const int> at(int list) const {
    const auto i = static_cast<size_t>(list);
    return std::span(items_).subspan(static_cast<size_t>(begin_[i]),
                                     static_cast<size_t>(begin_[i + 1] - begin_[i]));
  }

 private:
  std::vector<int> begin_;
  std::vector<int> items_;
};

// One step, or a whole fold: what becomes ready, runs and completes as one.
struct Instruction {
  int rank = 0;
  int first_step = 0;
  int step_count = 1;
  Opcode op = Opcode::send;
};

// Steps of all ranks are numbered through, rank by rank.
struct Graph {
  std::vector<Instruction> instructions;  // rank by rank, in list order
  std::vector<int> step_begin;            // rank -> number of its first step
  std::vector<int> instruction_of;        // step -> instruction
  std::vector<int> partner;               // step -> step at the other end of the lane; -1: local
  Lists hazards;                          // instruction -> later ones that touch what it touches
  Lists lanes;                            // instruction -> the next one on each of its lanes
};

// `plans` must have passed `validate`. Returns an error when a send has no recv or a recv no send.
std::string build_graph(const PlanSet& plans, Graph* graph);

// An order in which all instructions can complete when nothing is buffered: a send completes
// together with the instruction that receives it, and a fold takes all its operands at once.
// Shorter than the number of instructions when the plans deadlock. It does not matter which such
// order it is: each lane has one sender and one receiver, and whatever is ready stays ready (Kahn
// 1974).
std::vector<int> rendezvous_order(const Graph& graph);

}  // namespace pycomm
