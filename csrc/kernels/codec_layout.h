// SPDX-License-Identifier: MIT
// Where the bytes of each wire format lie, and how a block gets its scale: what all CPU levels
// share.
//
// A scaled format is a sequence of blocks, each a scale and then its elements. Everything here is
// integer arithmetic or a single rounding, so that scalar and vector code agree. In an unnamed
// namespace for the reason given in small_floats.h. Pure functions, any thread.
#pragma once

#include <cstddef>

#include "base/wire.h"
#include "kernels/small_floats.h"

namespace pycomm {
namespace {

struct Fp16sLayout {
  static constexpr size_t kBlock = 256;
  static constexpr size_t kHeaderBytes = 2;
  static constexpr size_t kBlockBytes = kHeaderBytes + 2 * kBlock;
  static constexpr size_t rest_bytes(size_t elements) { return kHeaderBytes + 2 * elements; }
};
struct Int8Layout {
  static constexpr size_t kBlock = 256;
  static constexpr int kLargest = 127;
  static constexpr size_t kHeaderBytes = 4;
  static constexpr size_t kBlockBytes = kHeaderBytes + kBlock;
  static constexpr size_t rest_bytes(size_t elements) { return kHeaderBytes + elements; }
};
struct Int4Layout {
  static constexpr size_t kBlock = 64;
  static constexpr int kLargest = 7;
  static constexpr size_t kHeaderBytes = 4;
  static constexpr size_t kBlockBytes = kHeaderBytes + kBlock / 2;
  static constexpr size_t rest_bytes(size_t elements) {
    return kHeaderBytes + (elements < kBlock / 2 ? elements : kBlock / 2);
  }
};

template <class Layout>
constexpr size_t encoded_bytes(size_t count) {
  const size_t rest = count % Layout::kBlock;
  return count / Layout::kBlock * Layout::kBlockBytes + (rest ? Layout::rest_bytes(rest) : 0);
}

constexpr size_t block_of(Wire wire) {
  return wire == Wire::fp16s  ? Fp16sLayout::kBlock
         : wire == Wire::int8 ? Int8Layout::kBlock
         : wire == Wire::int4 ? Int4Layout::kBlock
                              : 1;
}

constexpr uint32_t kFloatMaxBits = 0x7f7fffffu;
// From here on a finite magnitude rounds to 2^128 at the precision of float16.
constexpr uint32_t kRoundsBeyondBits = 0x7f7ff000u;

// What a float16 block is multiplied by before it is narrowed, as an exponent field; the decoder
// multiplies by the reciprocal, whose field is 254 - this. `largest` holds the bits of the block's
// largest magnitude, below kRoundsBeyondBits. It is rounded to float16's precision first: then
// encoding what was decoded finds the same scale. The reciprocal must not be subnormal, hence 253;
// what is subnormal in float32 is exact in float16 at that scale.
PYCOMM_KERNEL_INLINE uint32_t fp16s_field(uint32_t largest) {
  constexpr uint32_t kWanted = 14 + 2 * 127;
  const uint32_t field = kWanted - ((largest + 0x1000u) >> 23);
  return field < 253u ? field : 253u;
}
PYCOMM_KERNEL_INLINE float power_of_field(uint32_t field) {
  return __builtin_bit_cast(float, field << 23);
}

// The scale of an integer block, largest / kLargest, and what elements are multiplied by before
// they are rounded to integers.
struct IntegerScale {
  float scale, inverse;
};
// Largest * scale must not overflow in the decoder.
template <int Largest>
PYCOMM_KERNEL_INLINE constexpr float most_scale() {
  constexpr float kMax = __builtin_bit_cast(float, kFloatMaxBits);
  constexpr float kScale = kMax / Largest;
  return double{kScale} * Largest <= double{kMax}
             ? kScale
             : __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, kScale) - 1);
}
template <int Largest>
PYCOMM_KERNEL_INLINE IntegerScale integer_scale(uint32_t largest) {
  const float exact = __builtin_bit_cast(float, largest) / static_cast<float>(Largest);
  const float scale = exact < most_scale<Largest>() ? exact : most_scale<Largest>();
  return {scale, 1.0f / scale};
}
// Whether a block needs more care than integer_scale(): the scale would be zero or subnormal, or
// there is NaN or Inf.
template <int Largest>
PYCOMM_KERNEL_INLINE bool needs_care(uint32_t largest) {
  return largest >= kInfinityBits ||
         __builtin_bit_cast(float, largest) < static_cast<float>(Largest) * 0x1p-126f;
}

}  // namespace
}  // namespace pycomm
