// SPDX-License-Identifier: MIT
// float16 and bfloat16 in registers, by intrinsics.
//
// These two carry most mixed-precision training, so their conversions set the speed of a reduction
// that stays in cache. Both widen one load to two float32 vectors (a Pair). Included by cpu_table.h
// only. In an unnamed namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include "kernels/cpu_formats.h"

#if PYCOMM_VECTOR_BYTES > 0
#include <immintrin.h>
#endif

namespace pycomm {
namespace {

#if PYCOMM_VECTOR_BYTES == 0

using Float16 = Small<kFloat16>;

struct Bfloat16 {
  using Scalar = float;
  using Unit = float;
  static constexpr int kElements = 1;
  static constexpr int kElementBytes = 2;
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) {
    return widen_bfloat16<float>(uint32_t{load_as<uint16_t>(from)});
  }
  PYCOMM_KERNEL_INLINE static uint16_t pack(Unit v) {
    return static_cast<uint16_t>(narrow_bfloat16<float, uint32_t>(v));
  }
};

#else

PYCOMM_KERNEL_INLINE int either_nan(Floats a, Floats b) {
#if PYCOMM_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
#else
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q));
#endif
}
// NaN in either vector becomes the canonical one. It is so rare that a branch is cheaper than a
// select.
PYCOMM_KERNEL_INLINE Pair<Floats> without_odd_nan(Pair<Floats> v) {
  if (__builtin_expect(either_nan(v.first, v.second), 0)) {
    return {canonical(v.first), canonical(v.second)};
  }
  return v;
}

// The hardware conversions are told to round to nearest even whatever the mode register says, and
// keep subnormals, exactly like the portable ones. Narrowing straight into memory is a slow
// instruction on some processors: 64 KiB took a quarter longer, hence through a register.
struct Float16 {
  using Scalar = float;
  using Unit = Pair<Floats>;
  static constexpr int kElements = 2 * kLanes<float>;
  static constexpr int kElementBytes = 2;
#if PYCOMM_VECTOR_BYTES == 64
  using Half = __m256i;
  // The forms without a mask read an undefined register, of which GCC 12 warns.
  static constexpr uint16_t kAll = 0xffff;
  PYCOMM_KERNEL_INLINE static Floats widen_half(const char* from) {
    return _mm512_maskz_cvtph_ps(kAll, load_as<Half>(from));
  }
  PYCOMM_KERNEL_INLINE static Half narrow_half(Floats v) {
    Half half = _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT);
    asm("" : "+v"(half));
    return half;
  }
#else
  using Half = __m128i;
  PYCOMM_KERNEL_INLINE static Floats widen_half(const char* from) {
    return _mm256_cvtph_ps(load_as<Half>(from));
  }
  PYCOMM_KERNEL_INLINE static Half narrow_half(Floats v) {
    Half half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    asm("" : "+x"(half));
    return half;
  }
#endif
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) {
    return {widen_half(from), widen_half(from + 2 * kLanes<float>)};
  }
  struct Packed {
    Half first, second;
  };
  PYCOMM_KERNEL_INLINE static Packed pack(Unit v) {
    v = without_odd_nan(v);
    return {narrow_half(v.first), narrow_half(v.second)};
  }
};

// As one value the two would go through the stack, where a load of both waits for two stores.
PYCOMM_KERNEL_INLINE void store_as(char* to, const Float16::Packed& packed) {
  store_as(to, packed.first);
  store_as(to + sizeof packed.first, packed.second);
}

// Even and odd elements go to separate vectors: then widening is a shift or a mask within each
// 32-bit lane, and no instruction has to move data across lanes. Rounding is done after both are
// packed again, on 16-bit lanes, at half the cost: with `upper` the result's bits and `lower` the
// dropped ones, round up when lower > 0x8000, or == 0x8000 and upper is odd: when (lower | (upper &
// 1)) > 0x8000. The canonical NaN comes through that as it is, any other might become Inf; NaN is
// so rare that a branch is cheaper than a select.
struct Bfloat16 {
  using Scalar = float;
  using Unit = Pair<Floats>;
  static constexpr int kElements = 2 * kLanes<float>;
  static constexpr int kElementBytes = 2;
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) {
    const Words both = load_as<Words>(from);
    return {__builtin_bit_cast(Floats, both << 16), __builtin_bit_cast(Floats, both & 0xffff0000u)};
  }
#if PYCOMM_VECTOR_BYTES == 64
  PYCOMM_KERNEL_INLINE static __m512i round(__m512i upper, __m512i lower) {
    constexpr int kFirstOrSecondAndThird = 0xf8;
    const __m512i sticky =
        _mm512_ternarylogic_epi32(lower, upper, _mm512_set1_epi16(1), kFirstOrSecondAndThird);
    const __mmask32 up = _mm512_cmpgt_epu16_mask(sticky, _mm512_set1_epi16(-0x8000));
    return _mm512_mask_add_epi16(upper, up, upper, _mm512_set1_epi16(1));
  }
  // Word `2 * i + kOffset` of the two vectors side by side, for each i.
  template <uint16_t kOffset>
  PYCOMM_KERNEL_INLINE static __m512i every_other(__m512i a, __m512i b) {
    static constexpr Vector<uint16_t, 32> kEven{0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
                                                44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    return _mm512_permutex2var_epi16(a, __builtin_bit_cast(__m512i, kEven + kOffset), b);
  }
  // The same, but from the two in turns.
  template <uint16_t kOffset>
  PYCOMM_KERNEL_INLINE static __m512i in_turns(__m512i a, __m512i b) {
    static constexpr Vector<uint16_t, 32> kTurns{0,  32, 2,  34, 4,  36, 6,  38, 8,  40, 10,
                                                 42, 12, 44, 14, 46, 16, 48, 18, 50, 20, 52,
                                                 22, 54, 24, 56, 26, 58, 28, 60, 30, 62};
    return _mm512_permutex2var_epi16(a, __builtin_bit_cast(__m512i, kTurns + kOffset), b);
  }
  PYCOMM_KERNEL_INLINE static __m512i pack(Unit v) {
    v = without_odd_nan(v);
    const __m512i even = __builtin_bit_cast(__m512i, v.first);
    const __m512i odd = __builtin_bit_cast(__m512i, v.second);
    return round(in_turns<1>(even, odd), in_turns<0>(even, odd));
  }
  // Of vectors whose elements follow one another.
  PYCOMM_KERNEL_INLINE static __m512i pack_in_order(Unit v) {
    v = without_odd_nan(v);
    const __m512i first = __builtin_bit_cast(__m512i, v.first);
    const __m512i second = __builtin_bit_cast(__m512i, v.second);
    return round(every_other<1>(first, second), every_other<0>(first, second));
  }
#else
  PYCOMM_KERNEL_INLINE static __m256i round(__m256i upper, __m256i lower) {
    const __m256i sticky = _mm256_or_si256(lower, _mm256_and_si256(upper, _mm256_set1_epi16(1)));
    // The average (a + b + 1) / 2 keeps the carry of sticky + 0x7fff in its top bit.
    const __m256i up = _mm256_srli_epi16(_mm256_avg_epu16(sticky, _mm256_set1_epi16(0x7ffe)), 15);
    return _mm256_add_epi16(upper, up);
  }
  PYCOMM_KERNEL_INLINE static __m256i pack(Unit v) {
    constexpr int kOdd = 0xaa;
    v = without_odd_nan(v);
    const __m256i even = __builtin_bit_cast(__m256i, v.first);
    const __m256i odd = __builtin_bit_cast(__m256i, v.second);
    return round(_mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, kOdd),
                 _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), kOdd));
  }
  // Of vectors whose elements follow one another. The packing instruction works within 128 bits, so
  // the middle two of four pieces are exchanged at the end.
  PYCOMM_KERNEL_INLINE static __m256i pack_in_order(Unit v) {
    v = without_odd_nan(v);
    const __m256i first = __builtin_bit_cast(__m256i, v.first);
    const __m256i second = __builtin_bit_cast(__m256i, v.second);
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i upper =
        _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
    const __m256i lower =
        _mm256_packus_epi32(_mm256_and_si256(first, low), _mm256_and_si256(second, low));
    return _mm256_permute4x64_epi64(round(upper, lower), 0xd8);
  }
#endif
};

#endif

}  // namespace
}  // namespace pycomm
