// SPDX-License-Identifier: MIT
// How tensors, chunks and segments are cut.
#include "check.h"
#include "engine/cut.h"

using namespace pycomm;

TEST("segments are multiples of the element, within bounds, and few where a chunk is small") {
  const Cut cut = cut_for(2, kSegmentBytes, true, false);
  for (const size_t element : {size_t{1}, size_t{2}, size_t{4}, size_t{8}, size_t{16}}) {
    for (size_t chunk = 0; chunk < (size_t{64} << 20); chunk = chunk * 3 + element) {
      const size_t segment = segment_bytes_of(cut, chunk, element);
      CHECK(segment % element == 0 && segment >= kSegmentBytesMin && segment <= kSegmentBytes,
            segment, " for ", chunk);
      // What is worth two frames takes two.
      if (chunk >= 2 * kSegmentBytesMin)
        CHECK(2 * segment <= std::max(chunk + 128, 2 * kSegmentBytes));
    }
    CHECK(segment_bytes_of(cut, 128 * 1024, element) == 64 * 1024);
  }
}

TEST("a segment size that somebody asked for is kept, and so is one that is smaller than usual") {
  for (const size_t asked : {size_t{4096}, kSegmentBytes, 4 * kSegmentBytes}) {
    for (size_t chunk = 1; chunk < (size_t{64} << 20); chunk *= 5) {
      CHECK(segment_bytes_of(cut_for(4, asked, true, true), chunk, 4) == asked);
      const size_t small = segment_bytes_of(cut_for(64, 16 * 1024, true, false), chunk, 4);
      CHECK(small == 16 * 1024, small);
    }
  }
}

TEST("slices give every rank a segment, and are larger between hosts than in shared memory") {
  for (int p = 1; p <= 64; ++p) {
    const Cut cut = cut_for(p, kSegmentBytes, true, false);
    CHECK(cut.slice_bytes >= kSliceBytesMin);
    CHECK(cut.slice_bytes >= static_cast<size_t>(p) * kSegmentBytes);
    CHECK(slice_count_of(cut, cut.slice_bytes / 8 + 1, 8) == cut.slice_bytes / 8);
    CHECK(slice_count_of(cut, 100, 8) == 100);
    const Cut between_hosts = cut_for(p, kSegmentBytes, false, false);
    CHECK(between_hosts.slice_bytes > cut.slice_bytes);
    CHECK(cut.slice_encoded && !between_hosts.slice_encoded);
  }
}

TEST("chunks cover the tensor, begin on cache lines and are as even as that allows") {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{1000003}}) {
    for (int chunks = 1; chunks <= 9; ++chunks) {
      CHECK(chunk_begin(count, chunks, 0, 4) == 0);
      CHECK(chunk_begin(count, chunks, chunks, 4) == count);
      for (int i = 0; i < chunks; ++i) {
        const size_t begin = chunk_begin(count, chunks, i, 4);
        CHECK(begin <= chunk_begin(count, chunks, i + 1, 4));
        CHECK(begin == count || begin % 16 == 0, begin);
      }
    }
  }
}
