// SPDX-License-Identifier: MIT
#include "engine/program.h"

#include <algorithm>

#include "base/error.h"
#include "engine/in_place.h"

namespace pycomm {
namespace {

using Kind = Instruction::Kind;

uint32_t fnv1a(const std::string& text) {
  uint32_t hash = 2166136261u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash;
}

int number_of(const Plan& plan, ChunkRef chunk) {
  return chunk.buffer == Buffer::work ? chunk.index : plan.work_chunks + chunk.index;
}

// The rank whose contribution a chunk received last: a local reduce puts the lower rank's operand
// first, so that both ends of an exchange compute the same bits, NaN payloads included.
int last_sender(const std::vector<Instruction>& done, int chunk) {
  for (auto at = done.rbegin(); at != done.rend(); ++at) {
    if (at->kind == Kind::recv && at->target == chunk) return at->peer;
    if (at->kind == Kind::copy && at->target == chunk) return -1;
  }
  return -1;
}

std::vector<Instruction> join_steps(const Plan& plan) {
  std::vector<Instruction> joined;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    Instruction one;
    one.target = number_of(plan, step.chunk);
    one.source = one.target;
    one.peer = step.peer;
    one.completes = step.completes;
    switch (step.op) {
      case Opcode::send:
        one.kind = Kind::send;
        break;
      case Opcode::recv:
        one.kind = Kind::recv;
        break;
      case Opcode::copy:
        one.kind = Kind::copy;
        one.source = number_of(plan, step.source);
        break;
      case Opcode::reduce:
        one.kind = Kind::reduce;
        one.source = number_of(plan, step.source);
        one.peer = last_sender(joined, one.source);
        break;
      case Opcode::recv_reduce: {
        one.kind = Kind::fold;
        one.operands.push_back(plan.rank);
        for (; i < plan.steps.size() && plan.steps[i].op == Opcode::recv_reduce &&
               plan.steps[i].chunk == step.chunk;
             ++i) {
          one.operands.push_back(plan.steps[i].peer);
          one.completes = plan.steps[i].completes;
        }
        --i;
        std::sort(one.operands.begin(), one.operands.end());
        if (!joined.empty() && joined.back().kind == Kind::copy &&
            joined.back().target == one.target) {
          one.source = joined.back().source;
          joined.pop_back();
        }
        break;
      }
    }
    joined.push_back(std::move(one));
  }
  return joined;
}

bool receives_from(const Instruction& one, int rank, int peer) {
  if (one.kind == Kind::recv) return one.peer == peer;
  return one.kind == Kind::fold && peer != rank &&
         std::binary_search(one.operands.begin(), one.operands.end(), peer);
}

}  // namespace

std::string labelled(const std::string& algorithm, Wire wire) {
  return wire == Wire::fp32 ? algorithm : str(algorithm, " as ", name_of(wire));
}

bool writes(const Instruction& one, int chunk) {
  return one.kind != Kind::send && one.target == chunk;
}

bool reads(const Instruction& one, int chunk) {
  if (one.kind == Kind::recv) return false;
  if (one.kind == Kind::send) return one.target == chunk;
  return one.source == chunk || (one.kind == Kind::reduce && one.target == chunk);
}

Program::Program(Plan source, NarrowLinks narrow_links)
    : plan(std::move(source)), links(std::move(narrow_links)), label(plan.algorithm) {
  if (links.codec) label = labelled(label, links.codec->wire);
  hash = fnv1a(label) ^ static_cast<uint32_t>(plan.work_chunks);
  if (links.codec) hash ^= static_cast<uint32_t>(links.codec->block) << 16;
  instructions = join_steps(plan);
  mark_answers(instructions);
  mark_narrow(instructions, links);
  const int count = static_cast<int>(instructions.size());
  for (int i = 0; i < count; ++i) {
    first_dependency.push_back(static_cast<int>(dependencies.size()));
    const Instruction& one = instructions[static_cast<size_t>(i)];
    const auto add = [&](int before, bool whole) {
      for (size_t d = static_cast<size_t>(first_dependency.back()); d < dependencies.size(); ++d) {
        if (dependencies[d].before != before) continue;
        dependencies[d].whole |= whole;
        return;
      }
      dependencies.push_back({before, whole});
    };
    // Chunks: behind the last writer of what it reads, and behind every reader since, of what it
    // writes.
    for (const int chunk : {one.target, one.source}) {
      for (int j = i - 1; j >= 0; --j) {
        const Instruction& earlier = instructions[static_cast<size_t>(j)];
        const bool hazard = (writes(earlier, chunk) && (reads(one, chunk) || writes(one, chunk))) ||
                            (reads(earlier, chunk) && writes(one, chunk));
        if (hazard) add(j, false);
        if (writes(earlier, chunk)) break;
      }
    }
    // Lanes: behind the one before on each lane it uses.
    const auto follow_lane = [&](auto uses) {
      for (int j = i - 1; j >= 0; --j) {
        if (!uses(instructions[static_cast<size_t>(j)])) continue;
        add(j, true);
        break;
      }
    };
    if (one.kind == Kind::send) {
      follow_lane([&](const Instruction& e) { return e.kind == Kind::send && e.peer == one.peer; });
    } else if (one.kind == Kind::recv) {
      follow_lane([&](const Instruction& e) { return receives_from(e, plan.rank, one.peer); });
    }
    for (const int peer : one.operands) {
      if (peer == plan.rank) continue;
      follow_lane([&](const Instruction& e) { return receives_from(e, plan.rank, peer); });
    }
  }
  first_dependency.push_back(static_cast<int>(dependencies.size()));
}

}  // namespace pycomm
