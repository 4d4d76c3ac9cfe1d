// SPDX-License-Identifier: MIT
// Many tensors into one flat memory and back, in one pass over all of them.
//
// Where tensors lie in the flat memory is a pure function of their sizes, so that ranks with equal
// tensors agree. Any thread; the memory is the caller's.
#pragma once

#include <cstddef>
#include <vector>

#include "base/limits.h"

namespace pycomm {

struct Piece {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

// Where each piece begins, in bytes: on a cache line of its own, so that threads and vector loads
// do not meet. The last entry is the size of all.
std::vector<size_t> offsets_of(const std::vector<size_t>& bytes);

// `flat` holds offsets.back() bytes; what lies between pieces is left alone.
void pack(std::byte* flat, const std::vector<Piece>& pieces, const std::vector<size_t>& offsets);
void unpack(const std::byte* flat, const std::vector<Piece>& pieces,
            const std::vector<size_t>& offsets);

}  // namespace pycomm
