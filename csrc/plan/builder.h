// SPDX-License-Identifier: MIT
// Writes a plan step by step, so that an algorithm's source reads like its description:
// `plan.send(next, work(c)); plan.recv(previous, work(d));`. For the algorithm files of this
// folder. A value; not synchronised.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "plan/plan.h"

namespace pycomm {

constexpr ChunkRef work(int index) { return {Buffer::work, index}; }
constexpr ChunkRef scratch(int index) { return {Buffer::scratch, index}; }

// For whom a plan is made: one rank of `world_size`, and the root where the collective has one.
struct Place {
  int world_size = 1;
  int rank = 0;
  int root = 0;

  // Ranks (and chunks numbered like ranks) lie on a circle; `index` may lie one turn off either
  // way.
  int wrap(int index) const { return (index % world_size + world_size) % world_size; }
  // The rank `offset` places further round the circle.
  int at(int offset) const { return wrap(rank + offset); }
  bool is_root() const { return rank == root; }
};

class PlanBuilder {
 public:
  PlanBuilder(Collective collective, std::string_view algorithm, const Place& place,
              int work_chunks) {
    plan_.collective = collective;
    plan_.algorithm = std::string(algorithm);
    plan_.world_size = place.world_size;
    plan_.rank = place.rank;
    plan_.root = place.root;
    plan_.work_chunks = work_chunks;
  }

  // A new scratch chunk of the size of work chunk `like`, or a token.
  ChunkRef add_scratch(int like) {
    plan_.scratch_like.push_back(like);
    return scratch(static_cast<int>(plan_.scratch_like.size()) - 1);
  }

  void send(int peer, ChunkRef chunk) { add({Opcode::send, peer, chunk, {}, false}); }
  void recv(int peer, ChunkRef chunk) { add({Opcode::recv, peer, chunk, {}, false}); }
  void recv_reduce(int peer, ChunkRef chunk, bool completes) {
    add({Opcode::recv_reduce, peer, chunk, {}, completes});
  }
  void reduce(ChunkRef source, ChunkRef target, bool completes) {
    add({Opcode::reduce, -1, target, source, completes});
  }
  void copy(ChunkRef source, ChunkRef target) { add({Opcode::copy, -1, target, source, false}); }

  Plan build() && { return std::move(plan_); }

 private:
  void add(const Step& step) { plan_.steps.push_back(step); }

  Plan plan_;
};

}  // namespace pycomm
