// SPDX-License-Identifier: MIT
// How an operation's memory is cut: a large tensor into slices, which go through the whole plan one
// after the other; a slice into the plan's chunks; a chunk into segments, one a frame.
//
// Pure functions of what all ranks of a group know, so that both ends of a lane cut alike. A value;
// any thread.
#pragma once

#include <cstddef>

#include "base/limits.h"

namespace pycomm {

struct Cut {
  // Of one frame's payload. Segments are smaller where a chunk has too few of them, so that sending
  // and adding overlap, and so that all rings together stay small: down to segment_bytes_min.
  size_t segment_bytes = kSegmentBytes;
  size_t segment_bytes_min = kSegmentBytes;
  int segments_wanted = 1;  // in a chunk
  // Of an all_reduce's tensor that goes through the plan before the rest does: what the first half
  // of the plan left in the cache is still there when the second half needs it. 0: no slices.
  size_t slice_bytes = 0;
  bool slice_encoded = true;  // also where frames hold encodings
};

// For a group whose frames hold `segment_bytes`. `shared_memory`: all ranks share one host's
// memory; elsewhere a slice pays the network's latency, so it is larger. `exact`: segments have
// just this size, because somebody asked for it.
Cut cut_for(int world_size, size_t segment_bytes, bool shared_memory, bool exact);

// Of a chunk of `chunk_bytes`; a multiple of the element's size, which is a power of two. `block`:
// elements that must not be parted.
size_t segment_bytes_of(const Cut& cut, size_t chunk_bytes, size_t element_bytes, size_t block = 1);
// Elements in all slices but the last; `count` where the tensor is not sliced.
size_t slice_count_of(const Cut& cut, size_t count, size_t element_bytes);

// Where chunk `index` of `chunks` begins when `count` elements are cut: multiples of a cache line,
// so that ranks never share one, as even as that allows. index == chunks gives count.
size_t chunk_begin(size_t count, int chunks, int index, size_t element_bytes);

}  // namespace pycomm
