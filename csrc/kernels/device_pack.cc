// SPDX-License-Identifier: MIT
#include "kernels/device_pack.h"

#include <algorithm>

#include "base/error.h"

namespace pycomm {

std::vector<PackTile> pack_tiles(std::span<const size_t> begins, std::span<const size_t> counts) {
  PYCOMM_ASSERT(begins.size() == counts.size(), begins.size(), " and ", counts.size());
  std::vector<PackTile> tiles;
  for (size_t i = 0; i < counts.size(); ++i) {
    for (size_t done = 0; done < counts[i]; done += kPackTileElements) {
      const auto count = std::min<size_t>(kPackTileElements, counts[i] - done);
      tiles.push_back(
          {done, begins[i] + done, static_cast<uint32_t>(i), static_cast<uint32_t>(count)});
    }
  }
  return tiles;
}

}  // namespace pycomm
