// SPDX-License-Identifier: MIT
// Packs an array whose elements do not lie side by side into memory where they do, in C order, and
// unpacks it again. Pure functions over the caller's memory; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pycomm {

struct StridedArray {
  std::byte* data = nullptr;
  size_t item_bytes = 1;
  std::vector<int64_t> shape;    // elements
  std::vector<int64_t> strides;  // bytes; may be negative, or 0 where elements repeat
};

void pack(const StridedArray& from, std::byte* to);
void unpack(const std::byte* from, const StridedArray& to);

}  // namespace pycomm
