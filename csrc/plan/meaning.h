// SPDX-License-Identifier: MIT
// What the work chunks of a collective mean: which are inputs, which outputs, and which piece of
// the collective's data each one is. This is the specification that `check` proves plans against.
//
// A piece is what has one size and one meaning on all ranks: chunk c of an all_reduce, rank q's
// block of an all_gather, the block that s sends to d in an all_to_all. Pieces, not chunk numbers,
// are what both ends of a message must agree on. A value; any thread.
#pragma once

#include "plan/plan.h"

namespace pycomm {

class Meaning {
 public:
  explicit Meaning(const Plan& any);

  // How many work chunks the collective has at `world_size`; -1 when a plan may choose, -2 when it
  // has no plans.
  static int work_chunks_of(Collective collective, int world_size);

  int pieces() const;
  int piece(int rank, int chunk) const;

  // A chunk that is neither does not exist on that rank; one that is both is in place.
  bool is_input(int rank, int chunk) const;
  bool is_output(int rank, int chunk) const;

  bool sums() const;           // outputs are sums over all ranks
  int owner(int piece) const;  // otherwise: the rank whose input the piece is

 private:
  Collective collective_;
  int world_size_;
  int root_;
  int work_chunks_;
};

}  // namespace pycomm
