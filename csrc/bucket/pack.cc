// SPDX-License-Identifier: MIT
#include "bucket/pack.h"

#include <cstring>

namespace pycomm {

std::vector<size_t> offsets_of(const std::vector<size_t>& bytes) {
  std::vector<size_t> offsets{0};
  for (const size_t one : bytes) {
    const size_t lines = (one + kCacheLineBytes - 1) / kCacheLineBytes;
    offsets.push_back(offsets.back() + lines * kCacheLineBytes);
  }
  return offsets;
}

void pack(std::byte* flat, const std::vector<Piece>& pieces, const std::vector<size_t>& offsets) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].bytes > 0) std::memcpy(flat + offsets[i], pieces[i].data, pieces[i].bytes);
  }
}

void unpack(const std::byte* flat, const std::vector<Piece>& pieces,
            const std::vector<size_t>& offsets) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].bytes > 0) std::memcpy(pieces[i].data, flat + offsets[i], pieces[i].bytes);
  }
}

}  // namespace pycomm
