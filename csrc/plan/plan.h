// SPDX-License-Identifier: MIT
// A plan is an algorithm as data: for one rank, the list of steps by which a collective is carried
// out.
//
// Steps name chunks of two buffers. `work` holds what the caller gave; `scratch` is the engine's.
// There are no dependency edges. Two steps are ordered when they touch the same chunk and at least
// one writes it (list order), or when they use the same lane, that is the same peer in the same
// direction (list order too: lanes are FIFO). Everything else may overlap. A maximal run of
// consecutive recv_reduce steps into one chunk is one fold: the chunk's value stands at this rank's
// place and the incoming values at their senders' places, and the sum runs in rank order, so every
// rank that folds the same operands gets the same bits.
//
// What `work` holds, by collective (p = world size):
//   all_reduce, broadcast, reduce   the tensor, cut into work_chunks chunks; `reduce` leaves it as
//   it
//                                   was on every rank but the root
//   all_gather, gather              chunks 0..p-1 the outputs (gather: the root's), chunk p the
//   input reduce_scatter, scatter         chunks 0..p-1 the inputs (scatter: the root's), chunk p
//   the output all_to_all                      chunks 0..p-1 the inputs, chunks p..2p-1 the outputs
//   barrier                         nothing; only tokens travel
// Input chunks are never written, except where input and output are the same tensor.
// Scratch chunk i has the size of work chunk scratch_like[i]; kToken stands for an empty chunk,
// whose frame carries only the operation's signature.
//
// Plans are values: copy, compare, print, share between threads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace pycomm {

enum class Opcode : uint8_t { send, recv, recv_reduce, reduce, copy };
enum class Buffer : uint8_t { work, scratch };

inline constexpr int kToken = -1;

struct ChunkRef {
  Buffer buffer = Buffer::work;
  int index = 0;
  bool operator==(const ChunkRef&) const = default;
};

struct Step {
  Opcode op = Opcode::send;
  int peer = -1;           // send, recv, recv_reduce
  ChunkRef chunk;          // sent, received into, reduced into, copied into
  ChunkRef source;         // reduce, copy: what is read
  bool completes = false;  // recv_reduce, reduce: the chunk now holds every rank's contribution
                           // (in a fold, set on its last step); avg divides here and only here
  bool operator==(const Step&) const = default;
};

struct Plan {
  Collective collective = Collective::all_reduce;
  std::string algorithm;
  int world_size = 1;
  int rank = 0;
  int root = 0;  // broadcast, reduce, gather, scatter
  int work_chunks = 1;
  std::vector<int> scratch_like;
  std::vector<Step> steps;
  bool operator==(const Plan&) const = default;
};

// Every rank's plan, index = rank.
using PlanSet = std::vector<Plan>;

std::string to_string(const Step& step);
// A table a person can read: a heading line, then one line a step.
std::string to_string(const Plan& plan);

// Appends `second`'s steps to `first`; both are of the same rank and agree on their work chunks, or
// `second` has none.
// Scratch chunks of `second` are renumbered behind those of `first`.
Plan concatenate(Plan first, const Plan& second);

}  // namespace pycomm
