// SPDX-License-Identifier: MIT
// Conversions between float32 and the 8- and 16-bit floats, in portable bit arithmetic.
//
// One set of formulas serves scalar CPU code, SIMD vectors (F and U may be vector types) and CUDA
// device code, which is what makes all of them give the same bits. Semantics are those of PyTorch
// 2.13: round to nearest even; float8_e4m3fn saturates at 448, the fnuz formats overflow to their
// one NaN, float8_e5m2 and float16 overflow to infinity. NaN always becomes the one canonical NaN.
//
// Everything is in an unnamed namespace on purpose: a copy compiled with AVX-512 must never be
// merged by the linker with the copy that a machine without AVX-512 calls. Pure functions, any
// thread.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PYCOMM_KERNEL_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define PYCOMM_KERNEL_INLINE inline __attribute__((always_inline))
#endif

namespace pycomm {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;  // what every NaN result becomes
constexpr uint64_t kNanBits64 = 0x7ff8000000000000u;

enum class Specials : uint8_t { infinity_and_nan, nan_all_ones, nan_negative_zero };

struct SmallFloat {
  int bits;
  int mantissa;
  int bias;
  Specials specials;
  uint32_t overflow_at;    // float32 bits of the first magnitude that becomes overflow_code
  uint32_t overflow_code;  // without sign
  uint32_t nan_code;
};

constexpr SmallFloat kFloat16{16, 10, 15, Specials::infinity_and_nan, 143u << 23, 0x7c00, 0x7e00};
constexpr SmallFloat kE5m2{8, 2, 15, Specials::infinity_and_nan, 143u << 23, 0x7c, 0x7f};
// 448 is the largest value and everything above it saturates there.
constexpr SmallFloat kE4m3fn{8, 3, 7, Specials::nan_all_ones, 1086u << 20, 0x7e, 0x7f};
constexpr SmallFloat kE4m3fnuz{8, 3, 8, Specials::nan_negative_zero, 135u << 23, 0x80, 0x80};
constexpr SmallFloat kE5m2fnuz{8, 2, 16, Specials::nan_negative_zero, 143u << 23, 0x80, 0x80};

// The code in the low bits of each 32-bit lane, to float32.
template <SmallFloat S, class F, class U>
PYCOMM_KERNEL_INLINE F widen(U code) {
  constexpr uint32_t kSignBit = 1u << (S.bits - 1);
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - S.bias) << 23;
  constexpr uint32_t kOne = 1u << 23;
  const U sign = (code & kSignBit) << (32 - S.bits);
  const U magnitude = (code & (kSignBit - 1)) << (23 - S.mantissa);
  const U normal = magnitude + kRebias;
  // A subnormal is its mantissa times the smallest step: give it the exponent of the smallest
  // normal number, then take that number away again; the subtraction is exact and normalises.
  const F smallest = __builtin_bit_cast(F, U{} + (kRebias + kOne));
  const U tiny = __builtin_bit_cast(U, __builtin_bit_cast(F, normal + kOne) - smallest);
  U result = (magnitude < kOne ? tiny : normal) | sign;
  if constexpr (S.specials == Specials::infinity_and_nan) {
    constexpr uint32_t kTop = ((1u << (S.bits - 1 - S.mantissa)) - 1) << 23;
    result = magnitude >= kTop ? (magnitude | kInfinityBits | sign) : result;
  } else if constexpr (S.specials == Specials::nan_all_ones) {
    result = (code & (kSignBit - 1)) == kSignBit - 1 ? U{} + kNanBits : result;
  } else {
    result = code == kSignBit ? U{} + kNanBits : result;
  }
  return __builtin_bit_cast(F, result);
}

// float32 to the code in the low bits of each lane.
template <SmallFloat S, class F, class U>
PYCOMM_KERNEL_INLINE U narrow(F value) {
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - S.bias) << 23;
  constexpr uint32_t kSmallest = kRebias + (1u << 23);
  constexpr int kDropped = 23 - S.mantissa;
  const U all = __builtin_bit_cast(U, value);
  const U sign = all & 0x80000000u;
  const U magnitude = all ^ sign;
  // Subnormal results: adding this power of two makes the FPU round at the right bit.
  const U magic = U{} + (static_cast<uint32_t>(127 - S.bias + kDropped + 1) << 23);
  const F shifted = __builtin_bit_cast(F, magnitude) + __builtin_bit_cast(F, magic);
  const U tiny = __builtin_bit_cast(U, shifted) - magic;
  const U odd = (magnitude >> kDropped) & 1u;
  const U normal = (magnitude + odd + ((1u << (kDropped - 1)) - 1 - kRebias)) >> kDropped;
  U code = magnitude < kSmallest ? tiny : normal;
  code = magnitude >= S.overflow_at ? U{} + S.overflow_code : code;
  U sign_code = sign >> (32 - S.bits);
  if constexpr (S.specials == Specials::nan_negative_zero) {
    sign_code = code == 0u ? code : sign_code;  // there is no negative zero: that code is the NaN
  }
  return magnitude > kInfinityBits ? U{} + S.nan_code : (code | sign_code);
}

// bfloat16 is the upper half of float32.
template <class F, class U>
PYCOMM_KERNEL_INLINE F widen_bfloat16(U code) {
  return __builtin_bit_cast(F, code << 16);
}
template <class F, class U>
PYCOMM_KERNEL_INLINE U narrow_bfloat16(F value) {
  const U bits = __builtin_bit_cast(U, value);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > kInfinityBits ? U{} + (kNanBits >> 16) : rounded;
}

// float8_e8m0fnu is a bare exponent: code c means 2^(c-127), 255 is NaN, and there is neither sign
// nor zero. Like PyTorch, the sign is dropped, and below 2^-126 only 2^-127 ties down.
template <class F, class U>
PYCOMM_KERNEL_INLINE F widen_e8m0(U code) {
  const U normal = code == 0u ? U{} + 0x00400000u : code << 23;
  return __builtin_bit_cast(F, code == 255u ? U{} + kNanBits : normal);
}
template <class F, class U>
PYCOMM_KERNEL_INLINE U narrow_e8m0(F value) {
  const U magnitude = __builtin_bit_cast(U, value) & 0x7fffffffu;
  const U exponent = magnitude >> 23;
  // Halfway is 1.5 in a normal number (rounds up) and 2^-127 in a subnormal one (stays).
  const U mantissa = magnitude & 0x007fffffu;
  const U halfway = exponent == 0u ? U{} + 0x00400001u : U{} + 0x00400000u;
  const U rounded = mantissa >= halfway ? exponent + 1u : exponent;
  return exponent == 255u ? exponent : rounded;
}

}  // namespace
}  // namespace pycomm
