// SPDX-License-Identifier: MIT
// How a block of each wire format is encoded, and how 64 elements of one get into registers.
//
// Written over the vectors of cpu_formats.h and compiled for each CPU level; codec_layout.h has
// what they share. Elements are scaled (Keep or Times of operators.h) on their way in. A chunk is
// what encode() does at once: a block, or 64 elements where a format has no blocks. In an unnamed
// namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include "kernels/codec_layout.h"
#include "kernels/codec_vectors.h"

namespace pycomm {
namespace {

PYCOMM_KERNEL_INLINE Floats load_floats(const float* from) {
  return load_as<Floats>(reinterpret_cast<const char*>(from));
}
// Floats may lie at any address.
PYCOMM_KERNEL_INLINE float load_float(const float* from) {
  return load_as<float>(reinterpret_cast<const char*>(from));
}
PYCOMM_KERNEL_INLINE void store_floats(float* to, Floats v) {
  store_as(reinterpret_cast<char*>(to), v);
}

template <class Scale>
PYCOMM_KERNEL_INLINE Part load_part(const float* from, Scale scale, float factor) {
  Part part;
  for (int i = 0; i < kVectors; ++i) part.v[i] = scale(load_floats(from + i * kLane)) * factor;
  return part;
}
PYCOMM_KERNEL_INLINE Part load_part(const float* from) {
  Part part;
  for (int i = 0; i < kVectors; ++i) part.v[i] = load_floats(from + i * kLane);
  return part;
}

// The bits of the largest magnitude of `count` elements; NaN is above Inf, and Inf above all else.
template <size_t kCount, class Scale>
PYCOMM_KERNEL_INLINE uint32_t largest_bits(const float* in, Scale scale) {
  Ints most{};
  for (size_t i = 0; i < kCount; i += kLane) {
    const Floats v = scale(load_floats(in + i));
    const Ints bits = __builtin_bit_cast(Ints, v) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return highest(most);
}

struct Fp32Wire {
  static constexpr bool kScaled = false;
  static constexpr size_t kChunk = kPart;
  static constexpr size_t kChunkBytes = 4 * kChunk;
  static constexpr size_t rest_bytes(size_t elements) { return 4 * elements; }
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale, uint32_t) {
    for (size_t i = 0; i < kChunk; i += kLane) store_as(out + 4 * i, scale(load_floats(in + i)));
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t at) {
    Part part;
    for (int i = 0; i < kVectors; ++i) part.v[i] = load_as<Floats>(chunk + 4 * (at + i * kLane));
    return part;
  }
};

struct Bf16Wire {
  static constexpr bool kScaled = false;
  static constexpr size_t kChunk = kPart;
  static constexpr size_t kChunkBytes = 2 * kChunk;
  static constexpr size_t rest_bytes(size_t elements) { return 2 * elements; }
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale, uint32_t) {
    Part part;
    for (int i = 0; i < kVectors; ++i) part.v[i] = scale(load_floats(in + i * kLane));
    store_bfloat16(out, part);
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t at) {
    Part part;
    for (int i = 0; i < kVectors; ++i) {
      part.v[i] = widen_bfloat16<Floats>(widen_16(chunk + 2 * (at + i * kLane)));
    }
    return part;
  }
};

// A block with NaN or Inf, unscaled, or one so large that rounding could leave the range.
template <class Scale>
void encode_beyond(const float* in, char* out, Scale scale, uint32_t largest) {
  const bool finite = largest < kInfinityBits;
  constexpr uint32_t kSmallest = 254u - 14u;  // 2^-113 in the encoder
  const uint32_t field = finite ? 254u - kSmallest : 127u;
  store_as(out, static_cast<uint16_t>((254u - field) << 7));
  for (size_t i = 0; i < Fp16sLayout::kBlock; ++i) {
    const float v = scale(load_float(in + i)) * power_of_field(field);
    uint32_t code = narrow<kFloat16, float, uint32_t>(v);
    if (finite && (code & 0x7fffu) == 0x7800u) --code;  // 2^15 would decode to Inf
    store_as(out + Fp16sLayout::kHeaderBytes + 2 * i, static_cast<uint16_t>(code));
  }
}

struct Fp16sWire : Fp16sLayout {
  static constexpr bool kScaled = true;
  static constexpr size_t kChunk = kBlock;
  static constexpr size_t kChunkBytes = kBlockBytes;
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale,
                                          uint32_t largest) {
    if (__builtin_expect(largest >= kRoundsBeyondBits, 0)) {
      return encode_beyond(in, out, scale, largest);
    }
    const uint32_t field = fp16s_field(largest);
    store_as(out, static_cast<uint16_t>((254u - field) << 7));
    const float power = power_of_field(field);
    for (size_t i = 0; i < kBlock; i += kLane) {
      narrow_half(out + kHeaderBytes + 2 * i, scale(load_floats(in + i)) * power);
    }
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t at) {
    const float power = widen_bfloat16<float>(uint32_t{load_as<uint16_t>(chunk)});
    Part part;
    for (int i = 0; i < kVectors; ++i) {
      part.v[i] = widen_half(chunk + kHeaderBytes + 2 * (at + i * kLane)) * power;
    }
    return part;
  }
};

struct Int8Wire : Int8Layout {
  static constexpr size_t kChunk = kBlock;
  static constexpr size_t kChunkBytes = kBlockBytes;
  // The codes of elements `at` and on.
  PYCOMM_KERNEL_INLINE static void put_part(char* out, size_t at, const Part& part) {
    store_integers(out + kHeaderBytes + at, part);
  }
  static void put(char* out, size_t i, int code) {
    out[kHeaderBytes + i] = static_cast<char>(code);
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t at) {
    const float scale = load_as<float>(chunk);
    Part part;
    for (int i = 0; i < kVectors; ++i) {
      const Ints codes = widen_signed_8(chunk + kHeaderBytes + at + i * kLane);
      part.v[i] = convert<Floats>(codes) * scale;
    }
    return part;
  }
};

struct Int4Wire : Int4Layout {
  static constexpr size_t kChunk = kBlock;
  static constexpr size_t kChunkBytes = kBlockBytes;
  PYCOMM_KERNEL_INLINE static void put_part(char* out, size_t, const Part& part) {
    store_half_bytes(out + kHeaderBytes, part);
  }
  static void put(char* out, size_t i, int code) {
    char& byte = out[kHeaderBytes + i % (kBlock / 2)];
    const auto half = static_cast<unsigned>(code) & 15u;
    // Elements come in order: the low half first.
    byte = static_cast<char>(i < kBlock / 2 ? half : static_cast<uint8_t>(byte) | half << 4);
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t) {
    return load_half_bytes(chunk + kHeaderBytes, load_as<float>(chunk));
  }
};

// A block of zeros, of values so small that the scale is subnormal (a whole number of the smallest
// steps then), or with NaN or Inf.
template <class Wire, class Scale>
void encode_with_care(const float* in, char* out, Scale scale, uint32_t largest) {
  constexpr double kStepsPerUnit = 0x1p149, kUnits = 0x1.8p52;
  uint32_t bits = kNanBits;
  if (largest < kInfinityBits) {
    const double steps = double{__builtin_bit_cast(float, largest)} * kStepsPerUnit;
    bits = (static_cast<uint32_t>(steps) + Wire::kLargest - 1) / Wire::kLargest;
  }
  store_as(out, bits);
  const double inverse = bits && bits != kNanBits ? kStepsPerUnit / bits : 0.0;
  for (size_t i = 0; i < Wire::kBlock; ++i) {
    const double v = double{scale(load_float(in + i))} * inverse + kUnits;
    Wire::put(out, i, bits == kNanBits ? 0 : static_cast<int>(v - kUnits));
  }
}

// Int8Wire and Int4Wire.
template <class Wire>
struct IntegerWire : Wire {
  static constexpr bool kScaled = true;
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale,
                                          uint32_t largest) {
    if (__builtin_expect(needs_care<Wire::kLargest>(largest), 0)) {
      return encode_with_care<Wire>(in, out, scale, largest);
    }
    const IntegerScale found = integer_scale<Wire::kLargest>(largest);
    store_as(out, found.scale);
    for (size_t at = 0; at < Wire::kBlock; at += kPart) {
      Wire::put_part(out, at, load_part(in + at, scale, found.inverse));
    }
  }
};

}  // namespace
}  // namespace pycomm
