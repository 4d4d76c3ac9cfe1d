// SPDX-License-Identifier: MIT
// How a block of each wire format is encoded, and how 64 elements of one get into registers.
//
// Written over the vectors of cpu_formats.h and compiled for each CPU level; codec_layout.h has
// what they share. Elements are scaled (Keep or Times of operators.h) on their way in. A chunk is
// what encode() does at once: a block, or 64 elements where a format has no blocks. In an unnamed
// namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include "kernels/codec_layout.h"
#include "kernels/cpu_half_formats.h"

namespace pycomm {
namespace {

using Ints = Vector<int32_t, kLanes<float>>;

// What a sum keeps in registers across all sources: 4 vectors of AVX-512, 8 of AVX2.
inline constexpr size_t kPart = 64;
inline constexpr int kLane = kLanes<float>;
inline constexpr int kVectors = kPart / kLane;
struct Part {
  Floats v[kVectors];
};

PYCOMM_KERNEL_INLINE Floats load_floats(const float* from) {
  return load_as<Floats>(reinterpret_cast<const char*>(from));
}
PYCOMM_KERNEL_INLINE void store_floats(float* to, Floats v) {
  store_as(reinterpret_cast<char*>(to), v);
}

PYCOMM_KERNEL_INLINE uint32_t highest(Words words) {
  uint32_t lanes[kLane], most = 0;
  __builtin_memcpy(lanes, &words, sizeof words);
  for (uint32_t lane : lanes) most = lane > most ? lane : most;
  return most;
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
  return highest(__builtin_bit_cast(Words, most));
}

struct Fp32Wire {
  static constexpr size_t kChunk = kPart;
  static constexpr size_t kChunkBytes = 4 * kChunk;
  static constexpr size_t rest_bytes(size_t elements) { return 4 * elements; }
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale) {
    for (size_t i = 0; i < kChunk; i += kLane) store_as(out + 4 * i, scale(load_floats(in + i)));
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t at) {
    Part part;
    for (int i = 0; i < kVectors; ++i) part.v[i] = load_as<Floats>(chunk + 4 * (at + i * kLane));
    return part;
  }
};

struct Bf16Wire {
  using Codes = Vector<uint16_t, kLane>;
  static constexpr size_t kChunk = kPart;
  static constexpr size_t kChunkBytes = 2 * kChunk;
  static constexpr size_t rest_bytes(size_t elements) { return 2 * elements; }
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale) {
    for (size_t i = 0; i < kChunk; i += kLane) {
      const Words codes = narrow_bfloat16<Floats, Words>(scale(load_floats(in + i)));
      store_as(out + 2 * i, convert<Codes>(codes));
    }
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t at) {
    Part part;
    for (int i = 0; i < kVectors; ++i) {
      const Codes codes = load_as<Codes>(chunk + 2 * (at + i * kLane));
      part.v[i] = widen_bfloat16<Floats>(convert<Words>(codes));
    }
    return part;
  }
};

// Float16 of cpu_half_formats.h, one vector at a time.
#if PYCOMM_VECTOR_BYTES == 0
PYCOMM_KERNEL_INLINE void narrow_half(char* to, Floats v) { Float16::store(to, v); }
PYCOMM_KERNEL_INLINE Floats widen_half(const char* from) { return Float16::load(from); }
#else
PYCOMM_KERNEL_INLINE void narrow_half(char* to, Floats v) { Float16::narrow_half(to, v); }
PYCOMM_KERNEL_INLINE Floats widen_half(const char* from) { return Float16::widen_half(from); }
#endif

// A block with NaN or Inf, unscaled, or one so large that rounding could leave the range.
template <class Scale>
void encode_beyond(const float* in, char* out, Scale scale, uint32_t largest) {
  const bool finite = largest < kInfinityBits;
  constexpr uint32_t kSmallest = 254u - 14u;  // 2^-113 in the encoder
  const uint32_t field = finite ? 254u - kSmallest : 127u;
  store_as(out, static_cast<uint16_t>((254u - field) << 7));
  for (size_t i = 0; i < Fp16sLayout::kBlock; ++i) {
    const float v = scale(in[i]) * power_of_field(field);
    uint32_t code = narrow<kFloat16, float, uint32_t>(v);
    if (finite && (code & 0x7fffu) == 0x7800u) --code;  // 2^15 would decode to Inf
    store_as(out + Fp16sLayout::kHeaderBytes + 2 * i, static_cast<uint16_t>(code));
  }
}

struct Fp16sWire : Fp16sLayout {
  static constexpr size_t kChunk = kBlock;
  static constexpr size_t kChunkBytes = kBlockBytes;
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale) {
    const uint32_t largest = largest_bits<kBlock>(in, scale);
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

// In the low byte of each lane. The sum with this constant rounds to nearest even in the last bit
// of the mantissa, which holds the units.
PYCOMM_KERNEL_INLINE Words to_integers(Floats v) {
  constexpr float kUnits = 0x1.8p23f;
  return __builtin_bit_cast(Words, v + kUnits);
}

struct Int8Wire : Int8Layout {
  using Bytes = Vector<uint8_t, kLane>;
  using SignedBytes = Vector<int8_t, kLane>;
  static constexpr size_t kChunk = kBlock;
  static constexpr size_t kChunkBytes = kBlockBytes;
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode_part(const float* in, char* out, Scale scale,
                                               float inverse) {
    for (size_t i = 0; i < kPart; i += kLane) {
      store_as(out + i, convert<Bytes>(to_integers(scale(load_floats(in + i)) * inverse)));
    }
  }
  PYCOMM_KERNEL_INLINE static char* payload(char* out, size_t at) {
    return out + kHeaderBytes + at;
  }
  // The code of one element.
  static void put(char* out, size_t i, int code) {
    out[kHeaderBytes + i] = static_cast<char>(code);
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t at) {
    const float scale = load_as<float>(chunk);
    Part part;
    for (int i = 0; i < kVectors; ++i) {
      const auto bytes = load_as<SignedBytes>(chunk + kHeaderBytes + at + i * kLane);
      part.v[i] = convert<Floats>(convert<Ints>(bytes)) * scale;
    }
    return part;
  }
};

struct Int4Wire : Int4Layout {
  using Bytes = Vector<uint8_t, kLane>;
  static constexpr size_t kChunk = kBlock;
  static constexpr size_t kChunkBytes = kBlockBytes;
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode_part(const float* in, char* out, Scale scale,
                                               float inverse) {
    for (size_t i = 0; i < kPart / 2; i += kLane) {
      const Words low = to_integers(scale(load_floats(in + i)) * inverse);
      const Words high = to_integers(scale(load_floats(in + i + kPart / 2)) * inverse);
      store_as(out + i, convert<Bytes>((low & 15u) | (high << 4)));
    }
  }
  PYCOMM_KERNEL_INLINE static char* payload(char* out, size_t) { return out + kHeaderBytes; }
  static void put(char* out, size_t i, int code) {
    char& byte = out[kHeaderBytes + i % (kBlock / 2)];
    const auto half = static_cast<unsigned>(code) & 15u;
    // Elements come in order: the low half first.
    byte = static_cast<char>(i < kBlock / 2 ? half : static_cast<uint8_t>(byte) | half << 4);
  }
  PYCOMM_KERNEL_INLINE static Part load(const char* chunk, size_t) {
    const float scale = load_as<float>(chunk);
    Part part;
    for (int i = 0; i < kVectors / 2; ++i) {
      const Words bytes = convert<Words>(load_as<Bytes>(chunk + kHeaderBytes + i * kLane));
      const Ints low = __builtin_bit_cast(Ints, bytes << 28) >> 28;
      const Ints high = __builtin_bit_cast(Ints, bytes << 24) >> 28;
      part.v[i] = convert<Floats>(low) * scale;
      part.v[i + kVectors / 2] = convert<Floats>(high) * scale;
    }
    return part;
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
    const double v = double{scale(in[i])} * inverse + kUnits;
    Wire::put(out, i, bits == kNanBits ? 0 : static_cast<int>(v - kUnits));
  }
}

// Int8Wire and Int4Wire.
template <class Wire>
struct IntegerWire : Wire {
  template <class Scale>
  PYCOMM_KERNEL_INLINE static void encode(const float* in, char* out, Scale scale) {
    const uint32_t largest = largest_bits<Wire::kBlock>(in, scale);
    if (__builtin_expect(needs_care<Wire::kLargest>(largest), 0)) {
      return encode_with_care<Wire>(in, out, scale, largest);
    }
    const IntegerScale found = integer_scale<Wire::kLargest>(largest);
    store_as(out, found.scale);
    for (size_t at = 0; at < Wire::kBlock; at += kPart) {
      Wire::encode_part(in + at, Wire::payload(out, at), scale, found.inverse);
    }
  }
};

}  // namespace
}  // namespace pycomm
