// SPDX-License-Identifier: MIT
// A plan made ready to run: steps joined into instructions, ordering worked out once.
//
// A run of recv_reduce steps into one chunk becomes one k-way fold; a copy right before it is fused
// into it, so that the fold reads its own operand where it lies. For every instruction the earlier
// ones it must follow are listed: segment by segment where they share a chunk, whole where they
// share a lane. A value, built once per (collective, algorithm, root) and cached by the engine; any
// thread may read it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/narrow.h"
#include "plan/plan.h"

namespace pycomm {

struct Instruction {
  enum class Kind : uint8_t { send, recv, fold, reduce, copy };
  Kind kind = Kind::send;
  bool completes = false;
  // See narrow.h. The chunk is encoded on its way, or some operands are; and its encoding is kept,
  // or comes from where it was kept.
  bool narrow = false, image = false;
  int peer = -1;              // send, recv; reduce: whom the source chunk came from
  int target = 0;             // chunk number: work chunks first, scratch chunks behind them
  int source = 0;             // copy, reduce; fold: where this rank's own operand lies
  std::vector<int> operands;  // fold: ranks in order of addition, this rank among them
  // In-place answers, see in_place.h. send and recv: each other's index where a chunk goes to a
  // peer and next comes back from it, else -1. fold: by operand, the send that passes the sum on.
  int answer = -1;
  std::vector<int> answers;
};

bool writes(const Instruction& one, int chunk);
bool reads(const Instruction& one, int chunk);

// "direct", "direct as bf16"
std::string labelled(const std::string& algorithm, Wire wire);

// Instruction `before` must have finished the segment at hand, or everything.
struct Dependency {
  int before = 0;
  bool whole = false;
};

struct Program {
  Plan plan;
  uint32_t hash = 0;  // of what both ends must have in common
  std::vector<Instruction> instructions;
  std::vector<Dependency> dependencies;
  std::vector<int> first_dependency;  // by instruction, with one more at the end
  NarrowLinks links;
  std::string label;  // the algorithm, and what its chunks travel as where that is not their type

  explicit Program(Plan source, NarrowLinks narrow_links = {});
  int chunk_count() const { return plan.work_chunks + static_cast<int>(plan.scratch_like.size()); }
};

}  // namespace pycomm
