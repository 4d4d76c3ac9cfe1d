// SPDX-License-Identifier: MIT
// The element operators of a reduction, for scalars, SIMD vectors and CUDA alike.
//
// Integers wrap. min and max are
// those of IEEE 754-2019: a NaN on either side gives NaN and -0 is less than +0, so the result
// depends on neither order nor instruction set. Which NaN comes out of an addition does depend on
// both; hence canonical(), applied to every result before it is stored. In an unnamed namespace for
// the reason given in small_floats.h. Pure functions, any thread.
#pragma once

#include <type_traits>

#include "kernels/small_floats.h"

namespace pycomm {
namespace {

template <class V>
PYCOMM_KERNEL_INLINE auto element_of(V v) {
  if constexpr (std::is_arithmetic_v<V>) {
    return v;
  } else {
    return v[0];
  }
}
template <class V>
inline constexpr bool kIsFloat = std::is_floating_point_v<decltype(element_of(V{}))>;

// An integer as wide as the floating type V, lane by lane.
template <class V>
PYCOMM_KERNEL_INLINE auto integer_like(V v) {
  if constexpr (std::is_same_v<V, float>) {
    return int32_t{};
  } else if constexpr (std::is_same_v<V, double>) {
    return int64_t{};
  } else {
    return v == v;
  }
}
template <class V>
using IntegerLike = decltype(integer_like(V{}));

template <class V>
PYCOMM_KERNEL_INLINE V canonical_nan() {
  using I = IntegerLike<V>;
  if constexpr (sizeof(element_of(V{})) == 4) {
    return __builtin_bit_cast(V, I{} + static_cast<int32_t>(kNanBits));
  } else {
    return __builtin_bit_cast(V, I{} + static_cast<int64_t>(kNanBits64));
  }
}

template <class V>
PYCOMM_KERNEL_INLINE V canonical(V v) {
  if constexpr (kIsFloat<V>) {
    return v == v ? v : canonical_nan<V>();
  } else {
    return v;
  }
}

// What a scalar integer is added and multiplied in, so that it wraps: signed overflow is undefined,
// and two uint16 promote to int and could overflow that. Everything else computes in itself.
template <class V>
PYCOMM_KERNEL_INLINE auto wrapping(V v) {
  if constexpr (std::is_integral_v<V>) {
    return static_cast<std::conditional_t<sizeof(V) == 8, uint64_t, uint32_t>>(v);
  } else {
    return v;
  }
}

struct Sum {
  template <class V>
  PYCOMM_KERNEL_INLINE static V of(V a, V b) {
    return static_cast<V>(wrapping(a) + wrapping(b));
  }
};

struct Product {
  template <class V>
  PYCOMM_KERNEL_INLINE static V of(V a, V b) {
    return static_cast<V>(wrapping(a) * wrapping(b));
  }
};

struct Min {
  template <class V>
  PYCOMM_KERNEL_INLINE static V of(V a, V b) {
    if constexpr (kIsFloat<V>) {
      using I = IntegerLike<V>;
      const V both = __builtin_bit_cast(V, __builtin_bit_cast(I, a) | __builtin_bit_cast(I, b));
      const V less = a < b ? a : b;           // b when b is NaN
      const V result = a == b ? both : less;  // equal: the same bits, or -0 and +0
      return a == a ? result : canonical_nan<V>();
    } else {
      return a < b ? a : b;
    }
  }
};

struct Max {
  template <class V>
  PYCOMM_KERNEL_INLINE static V of(V a, V b) {
    if constexpr (kIsFloat<V>) {
      using I = IntegerLike<V>;
      const V both = __builtin_bit_cast(V, __builtin_bit_cast(I, a) & __builtin_bit_cast(I, b));
      const V more = a > b ? a : b;
      const V result = a == b ? both : more;
      return a == a ? result : canonical_nan<V>();
    } else {
      return a > b ? a : b;
    }
  }
};

struct BitAnd {
  template <class V>
  PYCOMM_KERNEL_INLINE static V of(V a, V b) {
    return static_cast<V>(a & b);
  }
};
struct BitOr {
  template <class V>
  PYCOMM_KERNEL_INLINE static V of(V a, V b) {
    return static_cast<V>(a | b);
  }
};
struct BitXor {
  template <class V>
  PYCOMM_KERNEL_INLINE static V of(V a, V b) {
    return static_cast<V>(a ^ b);
  }
};

// Complex numbers are pairs of reals for every operation but the product.
template <class Part>
struct ComplexUnit {
  Part real, imaginary;
};
struct ComplexProduct {
  template <class T>
  PYCOMM_KERNEL_INLINE static ComplexUnit<T> of(ComplexUnit<T> a, ComplexUnit<T> b) {
    return {a.real * b.real - a.imaginary * b.imaginary,
            a.real * b.imaginary + a.imaginary * b.real};
  }
};

// What happens to a sum before it is rounded and stored.
struct Keep {
  template <class V>
  PYCOMM_KERNEL_INLINE V operator()(V v) const {
    return v;
  }
};
template <class T>
struct Times {
  T factor;
  template <class V>
  PYCOMM_KERNEL_INLINE V operator()(V v) const {
    return v * factor;
  }
};
template <class T>
struct Over {
  T divisor;
  template <class V>
  PYCOMM_KERNEL_INLINE V operator()(V v) const {
    return v / divisor;
  }
};

// Truncating integer division, in a type that holds both the element and any divisor.
template <class T>
PYCOMM_KERNEL_INLINE T divide_integer(T value, int divisor) {
  using Wide =
      std::conditional_t<sizeof(T) == 8, T,
                         std::conditional_t<std::is_same_v<T, uint32_t>, int64_t, int32_t>>;
  return static_cast<T>(static_cast<Wide>(value) / static_cast<Wide>(divisor));
}

// A division by a power of two is exactly a multiplication by its reciprocal, and several times
// cheaper; any other divisor has to be divided by to keep the one rounding.
PYCOMM_KERNEL_INLINE constexpr bool is_power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

}  // namespace
}  // namespace pycomm
