// SPDX-License-Identifier: MIT
// What is checked of every call before anything is sent, whoever made its memory: tensors of torch
// or plain arrays.
//
// Every check throws UsageError that says what was given, what is expected and what to do. Any
// thread.
#pragma once

#include <memory>
#include <vector>

#include "engine/operation.h"

namespace pycomm {

void check_root(Collective collective, int64_t root, int world_size);
// The other end of a message: a rank of the group, and not this one.
void check_peer(Collective collective, int64_t peer, int rank, int world_size);
void check_op(Collective collective, ReduceOp op, DType dtype);

// An input that has been given memory of its own, to be filled when the operation begins.
struct MovedApart {
  std::unique_ptr<std::byte[]> apart;
  const std::byte* from;
  size_t bytes;
};

// A chunk's hazards are known by its number, not by its address: an input that lies where a result
// will be written could be overwritten before it is sent. These are the regions of such inputs. One
// thing is allowed in place: this rank's own block, which travels nowhere.
std::vector<size_t> overlapping_inputs(const Operation& operation, int rank);
// Gives them other memory.
std::vector<MovedApart> separate_overlaps(Operation& operation, int rank);

}  // namespace pycomm
