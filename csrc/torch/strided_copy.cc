// SPDX-License-Identifier: MIT
#include "torch/strided_copy.h"

#include <cstring>

namespace pycomm {
namespace {

// The array as rows of equal runs of adjacent bytes: trailing dimensions that lie side by side are
// one run, the last one that does not is walked by the inner loop.
struct Rows {
  std::byte* data;
  size_t run_bytes;
  int64_t runs = 1, stride = 0;                            // of the inner loop
  std::vector<int64_t> shape = {}, strides = {}, at = {};  // of the loops around it
};

Rows rows_of(const StridedArray& array) {
  Rows rows{array.data, array.item_bytes};
  size_t dims = array.shape.size();
  while (dims && (array.shape[dims - 1] == 1 ||
                  array.strides[dims - 1] == static_cast<int64_t>(rows.run_bytes))) {
    rows.run_bytes *= static_cast<size_t>(array.shape[--dims]);
  }
  if (dims) {
    rows.runs = array.shape[--dims];
    rows.stride = array.strides[dims];
  }
  const auto outer = static_cast<std::ptrdiff_t>(dims);
  rows.shape.assign(array.shape.begin(), array.shape.begin() + outer);
  rows.strides.assign(array.strides.begin(), array.strides.begin() + outer);
  rows.at.assign(dims, 0);
  return rows;
}

// kBytes: of a run, so that the compiler makes one move of it; 0: known at run time.
template <size_t kBytes>
std::byte* move_row(const Rows& rows, std::byte* row, std::byte* dense, bool packs) {
  const size_t bytes = kBytes ? kBytes : rows.run_bytes;
  for (int64_t i = 0; i < rows.runs; ++i, row += rows.stride, dense += bytes) {
    std::memcpy(packs ? dense : row, packs ? row : dense, bytes);
  }
  return dense;
}

template <size_t kBytes>
void move_rows(Rows rows, std::byte* dense, bool packs) {
  while (true) {
    dense = move_row<kBytes>(rows, rows.data, dense, packs);
    size_t d = rows.shape.size();
    while (true) {
      if (d == 0) return;
      --d;
      rows.data += rows.strides[d];
      if (++rows.at[d] < rows.shape[d]) break;
      rows.data -= rows.strides[d] * rows.shape[d];
      rows.at[d] = 0;
    }
  }
}

void move(const StridedArray& array, std::byte* dense, bool packs) {
  for (const auto size : array.shape) {
    if (size == 0) return;
  }
  const Rows rows = rows_of(array);
  switch (rows.run_bytes) {
    case 1:
      return move_rows<1>(rows, dense, packs);
    case 2:
      return move_rows<2>(rows, dense, packs);
    case 4:
      return move_rows<4>(rows, dense, packs);
    case 8:
      return move_rows<8>(rows, dense, packs);
    case 16:
      return move_rows<16>(rows, dense, packs);
    default:
      return move_rows<0>(rows, dense, packs);
  }
}

}  // namespace

void pack(const StridedArray& from, std::byte* to) { move(from, to, true); }

// Nothing is written through `from`.
void unpack(const std::byte* from, const StridedArray& to) {
  move(to, const_cast<std::byte*>(from), false);
}

}  // namespace pycomm
