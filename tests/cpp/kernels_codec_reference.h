// SPDX-License-Identifier: MIT
// What a wire format must give, written the slow and obvious way and sharing no code with the
// kernels; and inputs for it.
//
// Test code, one thread.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "base/wire.h"
#include "kernels_data.h"
#include "kernels_reference.h"

namespace codec_reference {

using pycomm::DType;
using pycomm::Wire;
using Bytes = std::vector<char>;
using Floats = std::vector<float>;

template <class T>
void append(Bytes& bytes, T value) {
  const char* from = reinterpret_cast<const char*>(&value);
  bytes.insert(bytes.end(), from, from + sizeof value);
}

inline size_t block_of(Wire wire) {
  return wire == Wire::int4 ? 64 : wire == Wire::fp16s || wire == Wire::int8 ? 256 : 1;
}

// The power of two that a finite block is multiplied by: 14 - exponent of the largest magnitude
// after it is rounded to 11 bits; at most 126, so that its reciprocal is a normal number.
inline int fp16s_power(float largest) {
  if (largest == 0) return 126;
  int exponent;
  const double fraction = std::frexp(static_cast<double>(largest), &exponent);  // in [0.5, 1)
  if (std::nearbyint(fraction * 2048) == 2048) ++exponent;
  return std::min(126, std::max(-113, 14 - (exponent - 1)));
}

inline void encode_fp16s(const float* x, size_t n, float largest, Bytes& out) {
  const int power = std::isfinite(largest) ? fp16s_power(largest) : 0;
  append(out, static_cast<uint16_t>((127 - power) << 7));
  for (size_t i = 0; i < n; ++i) {
    const float scaled = static_cast<float>(std::ldexp(static_cast<double>(x[i]), power));
    unsigned code = reference::encode_small(DType::float16, scaled);
    if (std::isfinite(largest) && (code & 0x7fff) == 0x7800) --code;
    append(out, static_cast<uint16_t>(code));
  }
}

// absmax / most; a whole number of the smallest steps, upwards, where that is subnormal.
inline float integer_scale(float largest, int most) {
  if (!std::isfinite(largest)) return NAN;
  if (largest < std::ldexp(static_cast<float>(most), -126)) {
    const double steps = std::ldexp(static_cast<double>(largest), 149);
    return static_cast<float>(std::ldexp(std::ceil(steps / most), -149));
  }
  const float most_of_all = 3.4028235e38f, step = static_cast<float>(most);
  float scale = largest / step;
  while (static_cast<double>(scale) * most > most_of_all) scale = std::nextafter(scale, 0.0f);
  return scale;
}

inline int integer_code(float x, float scale) {
  if (std::isnan(scale) || scale == 0) return 0;
  if (scale < std::ldexp(1.0f, -126)) {
    return static_cast<int>(std::nearbyint(static_cast<double>(x) * (1.0 / scale)));
  }
  const float inverse = 1.0f / scale;
  return static_cast<int>(std::nearbyint(x * inverse));
}

inline void encode_integers(const float* x, size_t n, float largest, int most, Bytes& out) {
  const float scale = integer_scale(largest, most);
  append(out, std::isnan(scale) ? uint32_t{0x7fc00000} : __builtin_bit_cast(uint32_t, scale));
  if (most == 127) {
    for (size_t i = 0; i < n; ++i) append(out, static_cast<int8_t>(integer_code(x[i], scale)));
    return;
  }
  for (size_t i = 0; i < std::min<size_t>(n, 32); ++i) {
    const int high = i + 32 < n ? integer_code(x[i + 32], scale) : 0;
    append(out, static_cast<uint8_t>((integer_code(x[i], scale) & 15) | (high & 15) << 4));
  }
}

inline Bytes encode(Wire wire, const Floats& in, float scale) {
  Floats x;
  for (float v : in) x.push_back(scale == 1 ? v : v * scale);  // at scale 1 a NaN keeps its bits
  Bytes out;
  const size_t block = block_of(wire);
  for (size_t at = 0; at < x.size(); at += block) {
    const size_t n = std::min(block, x.size() - at);
    float largest = 0;
    for (size_t i = at; i < at + n; ++i) {
      largest = std::isnan(x[i]) || std::isnan(largest) ? NAN : std::max(largest, std::fabs(x[i]));
    }
    if (wire == Wire::fp32) append(out, x[at]);
    if (wire == Wire::bf16) {
      append(out, static_cast<uint16_t>(reference::encode_small(DType::bfloat16, x[at])));
    }
    if (wire == Wire::fp16s) encode_fp16s(&x[at], n, largest, out);
    if (wire == Wire::int8) encode_integers(&x[at], n, largest, 127, out);
    if (wire == Wire::int4) encode_integers(&x[at], n, largest, 7, out);
  }
  return out;
}

// The value of element `i` of `n` in the block that begins at `from`.
inline float element(Wire wire, const char* from, size_t i) {
  using reference::from_bytes;
  const auto product = [](double a, double b) { return static_cast<float>(a * b); };
  switch (wire) {
    case Wire::bf16:
      return reference::decode_small(DType::bfloat16, from_bytes<uint16_t>(from));
    case Wire::fp16s: {
      const double power = reference::decode_small(DType::bfloat16, from_bytes<uint16_t>(from));
      const auto code = from_bytes<uint16_t>(from + 2 + 2 * i);
      return product(reference::decode_small(DType::float16, code), power);
    }
    case Wire::int8:
      return product(from_bytes<int8_t>(from + 4 + i), from_bytes<float>(from));
    case Wire::int4: {
      const int half = from_bytes<uint8_t>(from + 4 + i % 32) >> (i < 32 ? 0 : 4) & 15;
      return product(half < 8 ? half : half - 16, from_bytes<float>(from));
    }
    default:
      return from_bytes<float>(from);
  }
}

inline Floats decode(Wire wire, const Bytes& bytes, size_t count) {
  const size_t block = block_of(wire);
  const size_t block_bytes = wire == Wire::fp32    ? 4
                             : wire == Wire::bf16  ? 2
                             : wire == Wire::fp16s ? 514
                             : wire == Wire::int8  ? 260
                                                   : 36;
  Floats out;
  for (size_t i = 0; i < count; ++i) {
    out.push_back(element(wire, bytes.data() + i / block * block_bytes, i % block));
  }
  return out;
}

// Gradients as they come, and what breaks codecs. `hostile` mixes in NaN, Inf, random bits; others
// are finite, `tiny` subnormal or nearly so, `wide` of any exponent, `huge` near the largest.
enum class Kind { gaussian, wide, tiny, huge, zeros, hostile };
constexpr Kind kKinds[] = {Kind::gaussian, Kind::wide,  Kind::tiny,
                           Kind::huge,     Kind::zeros, Kind::hostile};

inline Floats values(std::mt19937_64& random, Kind kind, size_t count) {
  Floats out(count);
  if (kind == Kind::hostile) {
    // Few blocks of a large tensor are, so leave most of them alone.
    for (float& v : out) v = std::normal_distribution<float>()(random);
    for (size_t at = 0; at < count; at += 1 + random() % 700) {
      out[at] = __builtin_bit_cast(
          float, random() % 2 ? kernels_data::special<uint32_t>(random) : uint32_t(random()));
    }
    return out;
  }
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(-1, 1);
  const int base = static_cast<int>(random() % 24);  // alike in one tensor
  for (float& v : out) {
    switch (kind) {
      case Kind::wide:
        v = std::ldexp(uniform(random), static_cast<int>(random() % 40) - 20 + 9 * base - 108);
        break;
      case Kind::tiny:
        v = std::ldexp(uniform(random), -149 + base + static_cast<int>(random() % 20));
        break;
      case Kind::huge:
        v = std::ldexp(uniform(random), 128);
        if (!std::isfinite(v) || random() % 64 == 0) v = std::copysign(3.4028235e38f, v);
        break;
      case Kind::zeros:
        v = random() % 2 ? 0.0f : -0.0f;
        break;
      default:
        v = normal(random);
    }
  }
  return out;
}

}  // namespace codec_reference
