// SPDX-License-Identifier: MIT
// Many tensors into one flat memory and back, in one pass over all of them, which may multiply each
// element on its way. (The pass that narrows as well is in encoded_bucket.h.)
//
// Where tensors lie in the flat memory is a pure function of their sizes, so that ranks with equal
// tensors agree. Any thread; the memory is the caller's.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "base/dtype.h"
#include "base/limits.h"

namespace pycomm {

struct Piece {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

// Where each piece begins, in bytes: on a cache line of its own, so that threads and vector loads
// do not meet. The last entry is the size of all.
std::vector<size_t> offsets_of(const std::vector<size_t>& bytes);

// What elements are multiplied by, rounded once, as kernels/reduce.h's scale() does.
struct PackFactor {
  DType dtype = DType::float32;
  double factor = 1;
};

// `flat` holds offsets.back() bytes; what lies between pieces is left alone. A piece may be the
// very place it is packed to, or unpacked from. Without a factor bytes stay what they are.
void pack(std::byte* flat, const std::vector<Piece>& pieces, const std::vector<size_t>& offsets,
          std::optional<PackFactor> factor = {});
void unpack(const std::byte* flat, const std::vector<Piece>& pieces,
            const std::vector<size_t>& offsets, std::optional<PackFactor> factor = {});

}  // namespace pycomm
