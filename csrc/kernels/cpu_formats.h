// SPDX-License-Identifier: MIT
// How each element type is loaded into registers, and stored: the formats of the CPU reduce loops.
//
// A format's Unit is what one load fills: one vector, two (16-bit floats widen to two float32
// vectors) or, in the scalar build, one element. The includer defines PYCOMM_VECTOR_BYTES (0 =
// scalar). pack() makes NaN canonical and does the one rounding: what it returns are memory's
// bytes. In an unnamed namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include <cstddef>

#include "kernels/operators.h"

namespace pycomm {
namespace {

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T>
struct VectorOf<T, 1> {
  using type = T;
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

template <class T>
inline constexpr int kLanes = PYCOMM_VECTOR_BYTES ? PYCOMM_VECTOR_BYTES / sizeof(T) : 1;

template <class V>
PYCOMM_KERNEL_INLINE V load_as(const char* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}
template <class V>
PYCOMM_KERNEL_INLINE void store_as(char* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// Lane by lane static_cast.
template <class To, class From>
PYCOMM_KERNEL_INLINE To convert(From from) {
  if constexpr (std::is_arithmetic_v<From>) {
    return static_cast<To>(from);
  } else {
    return __builtin_convertvector(from, To);
  }
}

template <class V>
struct Pair {
  V first, second;
};

// Applies `function` to each vector of the units.
template <class Function, class V>
PYCOMM_KERNEL_INLINE V each(const Function& function, V a) {
  return function(a);
}
template <class Function, class V>
PYCOMM_KERNEL_INLINE Pair<V> each(const Function& function, Pair<V> a) {
  return {function(a.first), function(a.second)};
}
template <class Op, class V>
PYCOMM_KERNEL_INLINE V combine(V a, V b) {
  return Op::of(a, b);
}
template <class Op, class V>
PYCOMM_KERNEL_INLINE Pair<V> combine(Pair<V> a, Pair<V> b) {
  return {Op::of(a.first, b.first), Op::of(a.second, b.second)};
}

// Integers, float32 and float64: computed in themselves.
template <class T>
struct Native {
  using Scalar = T;
  using Unit = Vector<T, kLanes<T>>;
  static constexpr int kElements = kLanes<T>;
  static constexpr int kElementBytes = sizeof(T);
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) { return load_as<Unit>(from); }
  PYCOMM_KERNEL_INLINE static Unit pack(Unit v) { return canonical(v); }
};

// Any non-zero byte is true; results are 0 or 1.
struct Boolean : Native<uint8_t> {
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) {
    const Unit bytes = load_as<Unit>(from);
    const Unit one = static_cast<Unit>(Unit{} + uint8_t{1});
    return bytes != Unit{} ? one : Unit{};
  }
};

using Floats = Vector<float, kLanes<float>>;
using Words = Vector<uint32_t, kLanes<float>>;

// 8-bit floats, and 16-bit ones where no instruction converts them.
template <SmallFloat S>
struct Small {
  using Scalar = float;
  using Unit = Floats;
  using Code = std::conditional_t<S.bits == 8, uint8_t, uint16_t>;
  using Codes = Vector<Code, kLanes<float>>;
  static constexpr int kElements = kLanes<float>;
  static constexpr int kElementBytes = sizeof(Code);
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) {
    return widen<S, Floats>(convert<Words>(load_as<Codes>(from)));
  }
  PYCOMM_KERNEL_INLINE static Codes pack(Unit v) {
    return convert<Codes>(narrow<S, Floats, Words>(v));
  }
};

struct E8m0 {
  using Scalar = float;
  using Unit = Floats;
  using Codes = Vector<uint8_t, kLanes<float>>;
  static constexpr int kElements = kLanes<float>;
  static constexpr int kElementBytes = 1;
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) {
    return widen_e8m0<Floats>(convert<Words>(load_as<Codes>(from)));
  }
  PYCOMM_KERNEL_INLINE static Codes pack(Unit v) {
    return convert<Codes>(narrow_e8m0<Floats, Words>(v));
  }
};

// One number at a time at every level: products of complex tensors are rare.
template <class T>
struct Complex {
  using Scalar = T;
  using Unit = ComplexUnit<T>;
  static constexpr int kElements = 1;
  static constexpr int kElementBytes = 2 * sizeof(T);
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) { return load_as<Unit>(from); }
  PYCOMM_KERNEL_INLINE static Unit pack(Unit v) {
    return {canonical(v.real), canonical(v.imaginary)};
  }
};
struct ComplexHalf {
  using Scalar = float;
  using Unit = ComplexUnit<float>;
  static constexpr int kElements = 1;
  static constexpr int kElementBytes = 4;
  PYCOMM_KERNEL_INLINE static float part(const char* from) {
    return widen<kFloat16, float>(uint32_t{load_as<uint16_t>(from)});
  }
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) { return {part(from), part(from + 2)}; }
  PYCOMM_KERNEL_INLINE static uint32_t pack(Unit v) {
    const uint32_t real = narrow<kFloat16, float, uint32_t>(v.real);
    const uint32_t imaginary = narrow<kFloat16, float, uint32_t>(v.imaginary);
    return real | imaginary << 16;
  }
};

}  // namespace
}  // namespace pycomm
