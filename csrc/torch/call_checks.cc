// SPDX-License-Identifier: MIT
#include "torch/call_checks.h"

#include <algorithm>

namespace pycomm {
namespace {

// Whether results are written to region `index` of `count`; plan.h lists them.
bool is_written(Collective collective, size_t index, size_t count) {
  switch (collective) {
    case Collective::all_gather:
    case Collective::gather:
      return index + 1 < count;
    case Collective::scatter:
    case Collective::reduce_scatter:
      return index + 1 == count;
    case Collective::all_to_all:
      return index >= count / 2;
    default:
      return true;
  }
}

}  // namespace

void check_root(Collective collective, int64_t root, int world_size) {
  PYCOMM_USAGE(root >= 0 && root < world_size, name_of(collective), ": got root ", root,
               ", expected 0 to ", world_size - 1,
               " (invalid root rank); roots are ranks of the group");
}

void check_peer(Collective collective, int64_t peer, int rank, int world_size) {
  PYCOMM_USAGE(peer >= 0 && peer < world_size, name_of(collective), ": got peer ", peer,
               ", expected a rank of the group, 0 to ", world_size - 1,
               "; name another rank, counted within this group");
  PYCOMM_USAGE(peer != rank, name_of(collective), ": got peer ", peer,
               ", which is this rank itself, expected another rank; copy the tensor instead");
}

void check_op(Collective collective, ReduceOp op, DType dtype) {
  PYCOMM_USAGE(
      supports(op, dtype), name_of(collective), ": op ", name_of(op), " has no meaning on ",
      name_of(dtype),
      ", expected another op or dtype: bitwise ops need integers or bool, min and max need "
      "an order, avg needs numbers, premul_sum floating or complex ones; convert the tensor");
}

std::vector<size_t> overlapping_inputs(const Operation& operation, int rank) {
  std::vector<size_t> overlapping;
  const auto& work = operation.work;
  if (work.size() < 2) return overlapping;
  const size_t size = size_of(operation.dtype);
  const auto overlap = [&](const Region& a, const Region& b) {
    return a.count && b.count && a.data < b.data + b.count * size &&
           b.data < a.data + a.count * size;
  };
  const auto own = static_cast<size_t>(rank);
  const size_t last = work.size() - 1;
  const bool exchange = operation.collective == Collective::all_to_all;
  const size_t other = exchange ? work.size() / 2 + own : last;
  for (size_t i = 0; i < work.size(); ++i) {
    for (size_t out = 0; out < work.size(); ++out) {
      if (!is_written(operation.collective, out, work.size())) continue;
      if (i == out || !overlap(work[i], work[out])) continue;
      PYCOMM_USAGE(
          !is_written(operation.collective, i, work.size()), name_of(operation.collective),
          ": got outputs that share memory, expected one place for each; give every rank's "
          "output memory of its own");
      const bool own_block = std::min(i, out) == own && std::max(i, out) == other &&
                             work[i].data == work[out].data && work[i].count == work[out].count;
      if (own_block) continue;
      overlapping.push_back(i);
      break;
    }
  }
  return overlapping;
}

std::vector<MovedApart> separate_overlaps(Operation& operation, int rank) {
  std::vector<MovedApart> moved;
  for (const size_t i : overlapping_inputs(operation, rank)) {
    Region& region = operation.work[i];
    const size_t bytes = region.count * size_of(operation.dtype);
    moved.push_back({std::make_unique_for_overwrite<std::byte[]>(bytes), region.data, bytes});
    region.data = moved.back().apart.get();
  }
  return moved;
}

}  // namespace pycomm
