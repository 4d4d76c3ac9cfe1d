// SPDX-License-Identifier: MIT
// float16 and bfloat16 in registers: the only CPU file with intrinsics.
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
// 1)) > 0x8000. A NaN out of an addition is quiet, so it is still seen as NaN in `upper` alone.
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
  PYCOMM_KERNEL_INLINE static void store(char* to, Unit v) {
    constexpr uint32_t kOdd = 0xaaaaaaaau;
    const __m512i even = __builtin_bit_cast(__m512i, v.first);
    const __m512i odd = __builtin_bit_cast(__m512i, v.second);
    const __m512i upper = _mm512_mask_blend_epi16(kOdd, shift_right(even), odd);
    const __m512i lower = _mm512_mask_blend_epi16(kOdd, even, shift_left(odd));
    constexpr int kFirstOrSecondAndThird = 0xf8;
    const __m512i sticky =
        _mm512_ternarylogic_epi32(lower, upper, _mm512_set1_epi16(1), kFirstOrSecondAndThird);
    const __mmask32 up = _mm512_cmpgt_epu16_mask(sticky, _mm512_set1_epi16(-0x8000));
    __m512i result = _mm512_mask_add_epi16(upper, up, upper, _mm512_set1_epi16(1));
    // One comparison sees NaN in either vector; a branch hardly ever taken is cheaper than the
    // select.
    if (__builtin_expect(_mm512_cmp_ps_mask(v.first, v.second, _CMP_UNORD_Q) != 0, 0)) {
      const __mmask32 nan = _mm512_cmpgt_epu16_mask(
          _mm512_and_si512(upper, _mm512_set1_epi16(0x7fff)), _mm512_set1_epi16(0x7f80));
      result = _mm512_mask_mov_epi16(result, nan, _mm512_set1_epi16(kNanBits >> 16));
    }
    store_as(to, result);
  }
#else
  PYCOMM_KERNEL_INLINE static void store(char* to, Unit v) {
    constexpr int kOdd = 0xaa;
    const __m256i even = __builtin_bit_cast(__m256i, v.first);
    const __m256i odd = __builtin_bit_cast(__m256i, v.second);
    const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, kOdd);
    const __m256i lower = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), kOdd);
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i sticky = _mm256_or_si256(lower, _mm256_and_si256(upper, one));
    // The average (a + b + 1) / 2 keeps the carry of sticky + 0x7fff in its top bit.
    const __m256i up = _mm256_srli_epi16(_mm256_avg_epu16(sticky, _mm256_set1_epi16(0x7ffe)), 15);
    const __m256i nan = _mm256_cmpgt_epi16(_mm256_and_si256(upper, _mm256_set1_epi16(0x7fff)),
                                           _mm256_set1_epi16(0x7f80));
    store_as(to, _mm256_blendv_epi8(_mm256_add_epi16(upper, up), _mm256_set1_epi16(kNanBits >> 16),
                                    nan));
  }
#endif
};

#endif

}  // namespace
}  // namespace pycomm
