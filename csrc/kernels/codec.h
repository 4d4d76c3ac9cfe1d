// SPDX-License-Identifier: MIT
// Narrow wire formats: float32 elements to encoded bytes and back, and sums out of encoded bytes.
//
//   fp32   4 bytes an element, as they are
//   bf16   2 bytes, bfloat16, rounded to nearest even
//   fp16s  block of 256: 2 bytes of scale, then 256 float16. The scale is a power of two (the upper
//          half of its float32) that puts the block's largest magnitude between 2^14 and 2^15: no
//          finite value overflows, no block is flushed to zero
//   int8   block of 256: float32 scale, then 256 integers from -127 to 127
//   int4   block of 64: float32 scale, then 32 bytes, of which byte j holds the integers (-7 to 7)
//          of element j in its low and of element j + 32 in its high half
// The scale of int8 is absmax / 127, of int4 absmax / 7. The last block may hold fewer elements; of
// an int4 block of n elements the first min(n, 32) bytes travel.
//
// A block that holds NaN or Inf keeps them: bf16 and fp16s element by element (fp16s at scale 1),
// int8 and int4 as a whole: their scale is NaN, and each element decodes to NaN. Finite values
// stay finite, but for bf16, which rounds the largest 2^-9 part of the range to Inf. Subnormals
// are kept, -0.0 too where the format has one (not in int8 and int4).
//
// All CPU levels give the same bits, chosen as in kernels/reduce.h. Any thread; no memory kept; no
// alignment required. Ranges must not overlap unless said so.
#pragma once

#include <cstddef>

#include "base/wire.h"
#include "kernels/reduce.h"

namespace pycomm {

struct CodecKernels;

struct Codec {
  Wire wire;
  size_t block;  // elements: an encoding may be cut only at multiples of it
  const CodecKernels* kernels;

  size_t wire_bytes(size_t count) const;

  // Encodes in[i] * scale. `scale` is finite.
  void encode(const float* in, std::byte* out, size_t count, float scale = 1) const;

  // out[i] = decoded * scale.
  void decode(const std::byte* in, float* out, size_t count, float scale = 1) const;

  // Encodes, and inout[i] = what decode(out) gives: the owner of a sum decodes its own encoding, so
  // that all ranks hold the same bits.
  void round_trip(float* inout, std::byte* out, size_t count) const;

  // Encodes values[i] + before[i]; after[i] = that, minus what decode(out) gives, or before[i]
  // where this is not finite. `decoded` gets what decode(out) gives; it may be null, or `values`.
  // `after` may be `before`.
  void encode_with_residual(const float* values, const float* before, float* after, std::byte* out,
                            float* decoded, size_t count) const;

  // target[i] = (sum over k of source k, in that order) / divisor, in float32 and in one pass.
  // Source k is encoded (encoded[k] != nullptr) or plain floats (plain[k]). `target` may be one of
  // the plain sources. NaN results are the canonical one.
  void reduce(float* target, const std::byte* const* encoded, const float* const* plain,
              int source_count, size_t count, int divisor = 1) const;
};

const Codec& codec_for(Wire wire);                 // at best_cpu_level()
const Codec& codec_at(CpuLevel level, Wire wire);  // for tests and benchmarks

}  // namespace pycomm
