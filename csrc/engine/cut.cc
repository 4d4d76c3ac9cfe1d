// SPDX-License-Identifier: MIT
#include "engine/cut.h"

#include <algorithm>

namespace pycomm {

Cut cut_for(int world_size, size_t segment_bytes, bool shared_memory, bool exact) {
  Cut cut;
  cut.segment_bytes = cut.segment_bytes_min = segment_bytes;
  const auto ranks = static_cast<size_t>(std::max(1, world_size));
  if (!shared_memory) {
    cut.slice_bytes = ranks * std::max(segment_bytes, kSliceBytesBetweenHosts);
    cut.slice_encoded = false;
    return cut;
  }
  cut.slice_bytes = std::max(kSliceBytesMin, ranks * segment_bytes);
  if (exact) return cut;
  cut.segments_wanted = kSegmentsWanted;
  cut.segment_bytes_min = std::min(segment_bytes, kSegmentBytesMin);
  return cut;
}

size_t segment_bytes_of(const Cut& cut, size_t chunk_bytes, size_t element_bytes, size_t block) {
  const size_t share = chunk_bytes / static_cast<size_t>(cut.segments_wanted);
  const size_t lines = (share + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
  const size_t unit = element_bytes * block;
  return std::max(unit, std::clamp(lines, cut.segment_bytes_min, cut.segment_bytes) / unit * unit);
}

size_t slice_count_of(const Cut& cut, size_t count, size_t element_bytes) {
  return cut.slice_bytes == 0 ? count : std::min(count, cut.slice_bytes / element_bytes);
}

size_t chunk_begin(size_t count, int chunks, int index, size_t element_bytes) {
  if (index >= chunks) return count;
  const size_t unit = std::max<size_t>(1, kCacheLineBytes / element_bytes);
  const auto parts = static_cast<size_t>(chunks);
  const size_t each = (count + parts - 1) / parts;
  const size_t rounded = (each + unit - 1) / unit * unit;
  return std::min(count, rounded * static_cast<size_t>(index));
}

}  // namespace pycomm
