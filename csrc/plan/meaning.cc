// SPDX-License-Identifier: MIT
#include "plan/meaning.h"

namespace pycomm {

Meaning::Meaning(const Plan& any)
    : collective_(any.collective),
      world_size_(any.world_size),
      root_(any.root),
      work_chunks_(any.work_chunks) {}

int Meaning::work_chunks_of(Collective collective, int world_size) {
  switch (collective) {
    case Collective::all_reduce:
    case Collective::broadcast:
    case Collective::reduce:
      return -1;
    case Collective::all_gather:
    case Collective::gather:
    case Collective::scatter:
    case Collective::reduce_scatter:
      return world_size + 1;
    case Collective::all_to_all:
      return 2 * world_size;
    case Collective::barrier:
      return 0;
    case Collective::send:
    case Collective::recv:
      return -2;
  }
  return -2;
}

int Meaning::pieces() const {
  switch (collective_) {
    case Collective::all_gather:
    case Collective::gather:
    case Collective::scatter:
    case Collective::reduce_scatter:
      return world_size_;
    case Collective::all_to_all:
      return world_size_ * world_size_;
    default:
      return work_chunks_;
  }
}

int Meaning::piece(int rank, int chunk) const {
  switch (collective_) {
    case Collective::all_gather:
    case Collective::gather:
    case Collective::scatter:
    case Collective::reduce_scatter:
      return chunk == world_size_ ? rank : chunk;
    case Collective::all_to_all:
      return chunk < world_size_ ? rank * world_size_ + chunk
                                 : (chunk - world_size_) * world_size_ + rank;
    default:
      return chunk;
  }
}

bool Meaning::is_input(int rank, int chunk) const {
  switch (collective_) {
    case Collective::all_reduce:
    case Collective::reduce:
      return true;
    case Collective::broadcast:
      return rank == root_;
    case Collective::all_gather:
    case Collective::gather:
      return chunk == world_size_;
    case Collective::scatter:
      return rank == root_ && chunk < world_size_;
    case Collective::reduce_scatter:
    case Collective::all_to_all:
      return chunk < world_size_;
    default:
      return false;
  }
}

bool Meaning::is_output(int rank, int chunk) const {
  switch (collective_) {
    case Collective::all_reduce:
    case Collective::broadcast:
      return true;
    case Collective::reduce:
      return rank == root_;
    case Collective::all_gather:
      return chunk < world_size_;
    case Collective::gather:
      return rank == root_ && chunk < world_size_;
    case Collective::scatter:
    case Collective::reduce_scatter:
      return chunk == world_size_;
    case Collective::all_to_all:
      return chunk >= world_size_;
    default:
      return false;
  }
}

bool Meaning::sums() const {
  return collective_ == Collective::all_reduce || collective_ == Collective::reduce ||
         collective_ == Collective::reduce_scatter;
}

int Meaning::owner(int piece) const {
  switch (collective_) {
    case Collective::all_gather:
    case Collective::gather:
      return piece;
    case Collective::all_to_all:
      return piece / world_size_;
    default:
      return root_;
  }
}

}  // namespace pycomm
