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
  PYCOMM_KERNEL_INLINE static void store(char* to, Unit v) {
    store_as(to, static_cast<uint16_t>(narrow_bfloat16<float, uint32_t>(v)));
  }
};

#else

// The hardware conversions are told to round to nearest even whatever the mode register says, and
// keep subnormals, exactly like the portable ones.
struct Float16 {
  using Scalar = float;
  using Unit = Pair<Floats>;
  static constexpr int kElements = 2 * kLanes<float>;
  static constexpr int kElementBytes = 2;
#if PYCOMM_VECTOR_BYTES == 64
  // The forms without a mask read an undefined register, of which GCC 12 warns.
  static constexpr uint16_t kAll = 0xffff;
  PYCOMM_KERNEL_INLINE static Floats widen_half(const char* from) {
    return _mm512_maskz_cvtph_ps(kAll, load_as<__m256i>(from));
  }
  PYCOMM_KERNEL_INLINE static void narrow_half(char* to, Floats v) {
    store_as(to, _mm512_maskz_cvtps_ph(kAll, canonical(v), _MM_FROUND_TO_NEAREST_INT));
  }
#else
  PYCOMM_KERNEL_INLINE static Floats widen_half(const char* from) {
    return _mm256_cvtph_ps(load_as<__m128i>(from));
  }
  PYCOMM_KERNEL_INLINE static void narrow_half(char* to, Floats v) {
    store_as(to, _mm256_cvtps_ph(canonical(v), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  PYCOMM_KERNEL_INLINE static Unit load(const char* from) {
    return {widen_half(from), widen_half(from + 2 * kLanes<float>)};
  }
  PYCOMM_KERNEL_INLINE static void store(char* to, Unit v) {
    narrow_half(to, v.first);
    narrow_half(to + 2 * kLanes<float>, v.second);
  }
};

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
  PYCOMM_KERNEL_INLINE static __m512i shift_right(__m512i v) {
    return __builtin_bit_cast(__m512i, __builtin_bit_cast(Words, v) >> 16);
  }
  PYCOMM_KERNEL_INLINE static __m512i shift_left(__m512i v) {
    return __builtin_bit_cast(__m512i, __builtin_bit_cast(Words, v) << 16);
  }
  PYCOMM_KERNEL_INLINE static Unit without_odd_nan(Unit v) {
    // One comparison sees NaN in either vector.
    const bool nan = _mm512_cmp_ps_mask(v.first, v.second, _CMP_UNORD_Q) != 0;
    if (__builtin_expect(nan, 0)) return {canonical(v.first), canonical(v.second)};
    return v;
  }
  PYCOMM_KERNEL_INLINE static __m512i round(__m512i upper, __m512i lower) {
    constexpr int kFirstOrSecondAndThird = 0xf8;
    const __m512i sticky =
        _mm512_ternarylogic_epi32(lower, upper, _mm512_set1_epi16(1), kFirstOrSecondAndThird);
    const __mmask32 up = _mm512_cmpgt_epu16_mask(sticky, _mm512_set1_epi16(-0x8000));
    return _mm512_mask_add_epi16(upper, up, upper, _mm512_set1_epi16(1));
  }
  PYCOMM_KERNEL_INLINE static void store(char* to, Unit v) {
    constexpr uint32_t kOdd = 0xaaaaaaaau;
    v = without_odd_nan(v);
    const __m512i even = __builtin_bit_cast(__m512i, v.first);
    const __m512i odd = __builtin_bit_cast(__m512i, v.second);
    store_as(to, round(_mm512_mask_blend_epi16(kOdd, shift_right(even), odd),
                       _mm512_mask_blend_epi16(kOdd, even, shift_left(odd))));
  }
  // Of vectors whose elements follow one another.
  PYCOMM_KERNEL_INLINE static void store_in_order(char* to, Unit v) {
    static constexpr Vector<uint16_t, 32> kEven{0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
                                                44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    const auto lower_at = __builtin_bit_cast(__m512i, kEven);
    const auto upper_at = __builtin_bit_cast(__m512i, kEven + uint16_t{1});
    v = without_odd_nan(v);
    const __m512i first = __builtin_bit_cast(__m512i, v.first);
    const __m512i second = __builtin_bit_cast(__m512i, v.second);
    store_as(to, round(_mm512_permutex2var_epi16(first, upper_at, second),
                       _mm512_permutex2var_epi16(first, lower_at, second)));
  }
#else
  PYCOMM_KERNEL_INLINE static Unit without_odd_nan(Unit v) {
    const int nan = _mm256_movemask_ps(_mm256_cmp_ps(v.first, v.second, _CMP_UNORD_Q));
    if (__builtin_expect(nan, 0)) return {canonical(v.first), canonical(v.second)};
    return v;
  }
  PYCOMM_KERNEL_INLINE static __m256i round(__m256i upper, __m256i lower) {
    const __m256i sticky = _mm256_or_si256(lower, _mm256_and_si256(upper, _mm256_set1_epi16(1)));
    // The average (a + b + 1) / 2 keeps the carry of sticky + 0x7fff in its top bit.
    const __m256i up = _mm256_srli_epi16(_mm256_avg_epu16(sticky, _mm256_set1_epi16(0x7ffe)), 15);
    return _mm256_add_epi16(upper, up);
  }
  PYCOMM_KERNEL_INLINE static void store(char* to, Unit v) {
    constexpr int kOdd = 0xaa;
    v = without_odd_nan(v);
    const __m256i even = __builtin_bit_cast(__m256i, v.first);
    const __m256i odd = __builtin_bit_cast(__m256i, v.second);
    store_as(to, round(_mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, kOdd),
                       _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), kOdd)));
  }
  // Of vectors whose elements follow one another. The packing instruction works within 128 bits, so
  // the middle two of four pieces are exchanged at the end.
  PYCOMM_KERNEL_INLINE static void store_in_order(char* to, Unit v) {
    v = without_odd_nan(v);
    const __m256i first = __builtin_bit_cast(__m256i, v.first);
    const __m256i second = __builtin_bit_cast(__m256i, v.second);
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i upper =
        _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
    const __m256i lower =
        _mm256_packus_epi32(_mm256_and_si256(first, low), _mm256_and_si256(second, low));
    store_as(to, _mm256_permute4x64_epi64(round(upper, lower), 0xd8));
  }
#endif
};

#endif

}  // namespace
}  // namespace pycomm
