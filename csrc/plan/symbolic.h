// SPDX-License-Identifier: MIT
// Runs plans on formulas instead of numbers and compares the result with what the collective means.
// One proof owns one; not synchronised.
#pragma once

#include <string>
#include <vector>

#include "plan/expression.h"
#include "plan/graph.h"
#include "plan/meaning.h"
#include "plan/plan.h"

namespace pycomm {

class Symbolic {
 public:
  Symbolic(const PlanSet& plans, const Graph& graph);

  // One call of the collective, in the given order of completion: empty, or what went wrong. A
  // second call finds fresh inputs, and in scratch and outputs what the first one left.
  std::string run_call(const std::vector<int>& order);

 private:
  struct Chunk {
    int value = Expressions::kNothing;
    int writer = -1;  // step
  };

  Chunk& at(int rank, ChunkRef ref);
  std::string run(const Instruction& instruction);
  std::string run_receive(const Instruction& instruction);
  std::string run_local(const Plan& plan, size_t step);
  // Sums, stores, and compares with the step's `completes`.
  std::string add(const Plan& plan, size_t step, const std::vector<int>& operands);
  void load_inputs();
  std::string check_outputs();
  std::string check_output(const Plan& plan, int chunk, std::vector<int>* agreed);

  const PlanSet& plans_;
  const Graph& graph_;
  const Meaning meaning_;
  Expressions expressions_;
  std::vector<std::vector<Chunk>> chunks_;  // by rank: work, then scratch
  int first_piece_ = 0;  // each call has pieces of its own, so that leftovers stand out
};

}  // namespace pycomm
