// SPDX-License-Identifier: MIT
// Encoding with memory of what encoding lost: the residual of one step is added to the values of
// the next, so that errors of a coarse format do not pile up (error feedback; Seide et al. 2014,
// Karimireddy et al. 2019).
//
// A residual is read from `before` and written to `after`, which may be the same memory; with two
// memories a step can be taken back. Values that are not finite never enter a residual: where the
// loss is NaN or Inf, `after` gets what `before` held, since that still awaits its delivery. Null
// `before` and `after` mean no feedback. Any thread; no memory is kept beyond the call; no
// alignment required. Other ranges must not overlap.
#pragma once

#include <cstddef>

#include "kernels/codec.h"

namespace pycomm {

struct Residual {
  const float* before = nullptr;
  float* after = nullptr;
};

// Encodes values[i] + before[i]; after[i] = that, minus what decoding gives.
void encode_with_residual(const Codec& codec, const float* values, Residual residual,
                          std::byte* out, size_t count);

// What the owner of a sum does: adds the sources as Codec::reduce() does, divides, adds before[i],
// encodes into `out`, and puts what decoding gives into `target`, which may be one of the plain
// sources. after[i] is what the second encoding lost.
void reduce_with_residual(const Codec& codec, float* target, const std::byte* const* encoded,
                          const float* const* plain, int source_count, size_t count, int divisor,
                          Residual residual, std::byte* out);

}  // namespace pycomm
