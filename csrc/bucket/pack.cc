// SPDX-License-Identifier: MIT
#include "bucket/pack.h"

#include <cstring>

#include "kernels/reduce.h"

namespace pycomm {
namespace {

void move(std::byte* to, const std::byte* from, size_t bytes,
          const std::optional<PackFactor>& factor) {
  if (bytes == 0) return;
  if (factor) {
    scale(factor->dtype, from, to, bytes / size_of(factor->dtype), factor->factor);
  } else if (to != from) {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace

std::vector<size_t> offsets_of(const std::vector<size_t>& bytes) {
  std::vector<size_t> offsets{0};
  for (const size_t one : bytes) {
    const size_t lines = (one + kCacheLineBytes - 1) / kCacheLineBytes;
    offsets.push_back(offsets.back() + lines * kCacheLineBytes);
  }
  return offsets;
}

void pack(std::byte* flat, const std::vector<Piece>& pieces, const std::vector<size_t>& offsets,
          std::optional<PackFactor> factor) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    move(flat + offsets[i], pieces[i].data, pieces[i].bytes, factor);
  }
}

void unpack(const std::byte* flat, const std::vector<Piece>& pieces,
            const std::vector<size_t>& offsets, std::optional<PackFactor> factor) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    move(pieces[i].data, flat + offsets[i], pieces[i].bytes, factor);
  }
}

}  // namespace pycomm
