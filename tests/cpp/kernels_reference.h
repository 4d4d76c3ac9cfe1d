// SPDX-License-Identifier: MIT
// What a reduction must give, written the slow and obvious way and sharing no code with the
// kernels.
//
// Small floats are decoded by ldexp and encoded by searching the nearest code, so a wrong formula
// in the kernels cannot hide here. Floats accumulate in the accumulator type in source order, which
// makes the expected bits exact. Test code, one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "base/dtype.h"

namespace reference {

using pycomm::DType;
using pycomm::ReduceOp;

struct Small {
  int bits, mantissa, bias;
  bool has_infinity, negative_zero_is_nan, saturates;
  unsigned nan_code;
};
inline Small small_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return {16, 10, 15, true, false, false, 0x7e00};
    case DType::bfloat16:
      return {16, 7, 127, true, false, false, 0x7fc0};
    case DType::float8_e4m3fn:
      return {8, 3, 7, false, false, true, 0x7f};
    case DType::float8_e5m2:
      return {8, 2, 15, true, false, false, 0x7f};
    case DType::float8_e4m3fnuz:
      return {8, 3, 8, false, true, false, 0x80};
    default:
      return {8, 2, 16, false, true, false, 0x80};
  }
}

// The magnitude that a code without sign would have if every code were finite.
inline double finite_value(const Small& s, unsigned magnitude) {
  const int exponent = magnitude >> s.mantissa;
  const double fraction = magnitude & ((1u << s.mantissa) - 1);
  const double implied = exponent ? std::ldexp(1.0, s.mantissa) : 0.0;
  return std::ldexp(fraction + implied, (exponent ? exponent : 1) - s.bias - s.mantissa);
}
// The first magnitude code that is not a finite number.
inline unsigned first_special(const Small& s) {
  if (s.negative_zero_is_nan) return 0x80;
  if (s.has_infinity) return ((1u << (s.bits - 1)) - 1) >> s.mantissa << s.mantissa;
  return 0x7f;
}

inline float decode_small(DType dtype, unsigned code) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (dtype == DType::float8_e8m0fnu) return code == 255 ? nan : std::ldexp(1.0f, int(code) - 127);
  const Small s = small_of(dtype);
  const unsigned sign = 1u << (s.bits - 1), magnitude = code & (sign - 1);
  if (s.negative_zero_is_nan && code == sign) return nan;
  double value = finite_value(s, magnitude);
  if (magnitude >= first_special(s)) {
    value = s.has_infinity && magnitude == first_special(s) ? INFINITY : nan;
  }
  return static_cast<float>(code & sign ? -value : value);
}

inline unsigned encode_e8m0(float x) {
  const float a = std::fabs(x);
  if (!std::isfinite(a)) return 255;
  if (a <= std::ldexp(1.0f, -127)) return 0;
  if (a < std::ldexp(1.0f, -126)) return 1;
  const int exponent = std::ilogb(a);
  return exponent + 127 + (a >= std::ldexp(1.5f, exponent));
}

// To nearest; halfway to the even code.
inline unsigned encode_small(DType dtype, float x) {
  if (dtype == DType::float8_e8m0fnu) return encode_e8m0(x);
  const Small s = small_of(dtype);
  if (std::isnan(x)) return s.nan_code;
  const unsigned special = first_special(s);
  const double a = std::fabs(double(x));
  unsigned low = 0, high = special;  // invariant: value(low) <= a, and a < value(high) if finite
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (finite_value(s, middle) <= a ? low : high) = middle;
  }
  const double below = a - finite_value(s, low), above = finite_value(s, high) - a;
  unsigned code = below < above || (below == above && low % 2 == 0) ? low : high;
  if (code == special && s.saturates) code = special - 1;
  if (s.negative_zero_is_nan && (code == special || code == 0)) return code == 0 ? 0 : 0x80;
  return code | (std::signbit(x) ? 1u << (s.bits - 1) : 0);
}

template <class T>
T from_bytes(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

template <class F>
F combine_floats(ReduceOp op, F a, F b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<F>::quiet_NaN();
  switch (op) {
    case ReduceOp::product:
      return a * b;
    case ReduceOp::min:
      return a < b || (a == b && std::signbit(a)) ? a : b;
    case ReduceOp::max:
      return a > b || (a == b && std::signbit(b)) ? a : b;
    default:
      return a + b;
  }
}

template <class T>
T combine_integers(ReduceOp op, T a, T b) {
  using Wide = unsigned __int128;
  switch (op) {
    case ReduceOp::product:
      return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
    case ReduceOp::min:
      return std::min(a, b);
    case ReduceOp::max:
      return std::max(a, b);
    case ReduceOp::band:
      return a & b;
    case ReduceOp::bor:
      return a | b;
    case ReduceOp::bxor:
      return a ^ b;
    default:
      return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
  }
}

inline bool combine_booleans(ReduceOp op, bool a, bool b) {
  switch (op) {
    case ReduceOp::product:
    case ReduceOp::min:
    case ReduceOp::band:
      return a && b;
    case ReduceOp::bxor:
      return a != b;
    default:
      return a || b;
  }
}

struct Case {
  ReduceOp op;
  DType dtype;
  int divisor;
  std::vector<const char*> sources;
};

template <class T>
void integer_element(const Case& c, size_t i, char* out) {
  T value = from_bytes<T>(c.sources[0] + i * sizeof(T));
  for (size_t s = 1; s < c.sources.size(); ++s) {
    value = combine_integers(c.op, value, from_bytes<T>(c.sources[s] + i * sizeof(T)));
  }
  if (c.divisor != 1) value = static_cast<T>(static_cast<__int128>(value) / c.divisor);
  std::memcpy(out, &value, sizeof value);
}

// One real number; `load` and `store` convert between bytes and F.
template <class F, class Load, class Store>
void real_element(const Case& c, const Load& load, const Store& store) {
  F value = load(c.sources[0]);
  for (size_t s = 1; s < c.sources.size(); ++s) {
    value = combine_floats<F>(c.op, value, load(c.sources[s]));
  }
  if (c.divisor != 1) value /= static_cast<F>(c.divisor);
  store(std::isnan(value) ? std::numeric_limits<F>::quiet_NaN() : value);
}

template <class F, class Load, class Store>
void complex_element(const Case& c, const Load& load, const Store& store) {
  const auto quiet = [](F x) { return std::isnan(x) ? std::numeric_limits<F>::quiet_NaN() : x; };
  F real = load(c.sources[0], 0), imaginary = load(c.sources[0], 1);
  for (size_t s = 1; s < c.sources.size(); ++s) {
    const F re = load(c.sources[s], 0), im = load(c.sources[s], 1);
    const F next = real * re - imaginary * im;
    imaginary = real * im + imaginary * re;
    real = next;
  }
  store(0, quiet(real));
  store(1, quiet(imaginary));
}

template <class F>
void float_element(const Case& c, size_t i, char* out) {
  const auto load = [&](const char* from) { return from_bytes<F>(from + i * sizeof(F)); };
  real_element<F>(c, load, [&](F value) { std::memcpy(out, &value, sizeof value); });
}
inline void small_element(const Case& c, size_t i, char* out) {
  const size_t size = pycomm::size_of(c.dtype);
  const auto load = [&](const char* from) {
    unsigned code = 0;
    std::memcpy(&code, from + i * size, size);
    return decode_small(c.dtype, code);
  };
  real_element<float>(c, load, [&](float value) {
    const unsigned code = encode_small(c.dtype, value);
    std::memcpy(out, &code, size);
  });
}
template <class F>
void complex_product(const Case& c, size_t i, char* out) {
  const auto load = [&](const char* from, int part) {
    return from_bytes<F>(from + (2 * i + part) * sizeof(F));
  };
  complex_element<F>(c, load, [&](int part, F value) {
    std::memcpy(out + part * sizeof(F), &value, sizeof value);
  });
}
inline void complex_half_product(const Case& c, size_t i, char* out) {
  const auto load = [&](const char* from, int part) {
    return decode_small(DType::float16, from_bytes<uint16_t>(from + (2 * i + part) * 2));
  };
  complex_element<float>(c, load, [&](int part, float value) {
    const auto code = static_cast<uint16_t>(encode_small(DType::float16, value));
    std::memcpy(out + part * 2, &code, 2);
  });
}

// The expected bytes of element `i`.
inline void element(Case c, size_t i, char* out) {
  const bool product = c.op == ReduceOp::product;
  if (pycomm::is_complex(c.dtype) && !product) {
    const size_t half = pycomm::size_of(c.dtype) / 2;
    c.dtype = c.dtype == DType::complex32   ? DType::float16
              : c.dtype == DType::complex64 ? DType::float32
                                            : DType::float64;
    element(c, 2 * i, out);
    return element(c, 2 * i + 1, out + half);
  }
  switch (c.dtype) {
    case DType::uint8:
      return integer_element<uint8_t>(c, i, out);
    case DType::int8:
      return integer_element<int8_t>(c, i, out);
    case DType::int16:
      return integer_element<int16_t>(c, i, out);
    case DType::int32:
      return integer_element<int32_t>(c, i, out);
    case DType::int64:
      return integer_element<int64_t>(c, i, out);
    case DType::uint16:
      return integer_element<uint16_t>(c, i, out);
    case DType::uint32:
      return integer_element<uint32_t>(c, i, out);
    case DType::uint64:
      return integer_element<uint64_t>(c, i, out);
    case DType::boolean: {
      bool value = c.sources[0][i] != 0;
      for (size_t s = 1; s < c.sources.size(); ++s) {
        value = combine_booleans(c.op, value, c.sources[s][i] != 0);
      }
      *out = value;
      return;
    }
    case DType::float32:
      return float_element<float>(c, i, out);
    case DType::float64:
      return float_element<double>(c, i, out);
    case DType::complex32:
      return complex_half_product(c, i, out);
    case DType::complex64:
      return complex_product<float>(c, i, out);
    case DType::complex128:
      return complex_product<double>(c, i, out);
    default:
      return small_element(c, i, out);
  }
}

}  // namespace reference
