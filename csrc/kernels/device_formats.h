// SPDX-License-Identifier: MIT
// How an element becomes what a kernel computes in, and back: the element types of kernel bodies.
//
// Code is memory's form, Value what operators work on. narrow() rounds once and makes NaN
// canonical. The same formulas as the CPU's cpu_formats.h, so the same bits; Env offers the one
// instruction that converts a float16 where there is one. In an unnamed namespace for the reason
// given in small_floats.h. Pure functions, any thread.
#pragma once

#include "kernels/device_env.h"
#include "kernels/operators.h"

namespace pycomm {
namespace {

enum class Arithmetic : uint8_t { floating, integer, boolean, complex };

template <class T>
struct Whole {
  using Code = T;
  using Value = T;
  static constexpr Arithmetic kArithmetic =
      std::is_floating_point_v<T> ? Arithmetic::floating : Arithmetic::integer;
  static constexpr bool kUnrolled = sizeof(T) >= 4;
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env&, Code code) {
    return code;
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env&, Value value) {
    return canonical(value);
  }
};

// Any non-zero byte is true; results are 0 or 1.
struct BooleanElement {
  using Code = uint8_t;
  using Value = uint8_t;
  static constexpr Arithmetic kArithmetic = Arithmetic::boolean;
  static constexpr bool kUnrolled = false;
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env&, Code code) {
    return code != 0;
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env&, Value value) {
    return value;
  }
};

template <class C>
struct AsFloat {
  using Code = C;
  using Value = float;
  static constexpr Arithmetic kArithmetic = Arithmetic::floating;
  static constexpr bool kUnrolled = sizeof(C) >= 2;
};

struct HalfElement : AsFloat<uint16_t> {
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env& env, Code code) {
    return env.widen_half(code);
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env& env, Value value) {
    return value == value ? env.narrow_half(value) : static_cast<Code>(kFloat16.nan_code);
  }
};

struct Bfloat16Element : AsFloat<uint16_t> {
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env&, Code code) {
    return widen_bfloat16<float>(uint32_t{code});
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env&, Value value) {
    return static_cast<Code>(narrow_bfloat16<float, uint32_t>(value));
  }
};

template <SmallFloat S>
struct SmallElement : AsFloat<uint8_t> {
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env&, Code code) {
    return pycomm::widen<S, float>(uint32_t{code});
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env&, Value value) {
    return static_cast<Code>(pycomm::narrow<S, float, uint32_t>(value));
  }
};

struct E8m0Element : AsFloat<uint8_t> {
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env&, Code code) {
    return widen_e8m0<float>(uint32_t{code});
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env&, Value value) {
    return static_cast<Code>(narrow_e8m0<float, uint32_t>(value));
  }
};

// Two of Part's elements, for the product; every other operation sees their parts alone.
template <class Part>
struct ComplexElement {
  struct Code {
    typename Part::Code real, imaginary;
  };
  using Value = ComplexUnit<typename Part::Value>;
  static constexpr Arithmetic kArithmetic = Arithmetic::complex;
  static constexpr bool kUnrolled = false;
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env& env, Code code) {
    return {Part::widen(env, code.real), Part::widen(env, code.imaginary)};
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env& env, Value value) {
    return {Part::narrow(env, value.real), Part::narrow(env, value.imaginary)};
  }
};

}  // namespace
}  // namespace pycomm
