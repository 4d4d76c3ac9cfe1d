// SPDX-License-Identifier: MIT
// The few vector instructions of the wire formats that the compiler does not find by itself.
//
// Integers of 8 and 16 bits to lanes of 32 and back, in memory's order, and the largest lane. GCC
// 12 takes such conversions apart into scalars. In an unnamed namespace for the reason given in
// small_floats.h. No state, any thread.
#pragma once

#include "kernels/cpu_half_formats.h"

namespace pycomm {
namespace {

inline constexpr int kLane = kLanes<float>;
using Ints = Vector<int32_t, kLane>;

// As many vectors as 64 elements need: 4 of AVX-512, 8 of AVX2. What a sum keeps in registers
// across all sources.
inline constexpr size_t kPart = 64;
inline constexpr int kVectors = kPart / kLane;
struct Part {
  Floats v[kVectors];
};

#if PYCOMM_VECTOR_BYTES > 0
PYCOMM_KERNEL_INLINE uint32_t highest_of(__m128i four) {
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}
#endif

#if PYCOMM_VECTOR_BYTES == 0

PYCOMM_KERNEL_INLINE uint32_t highest(Ints v) { return static_cast<uint32_t>(v); }
PYCOMM_KERNEL_INLINE Words widen_16(const char* from) { return load_as<uint16_t>(from); }
PYCOMM_KERNEL_INLINE Ints widen_signed_8(const char* from) { return load_as<int8_t>(from); }
PYCOMM_KERNEL_INLINE Words widen_8(const char* from) { return load_as<uint8_t>(from); }
PYCOMM_KERNEL_INLINE Floats widen_half(const char* from) { return Float16::load(from); }
PYCOMM_KERNEL_INLINE void narrow_half(char* to, Floats v) { store_as(to, Float16::pack(v)); }

PYCOMM_KERNEL_INLINE void store_bfloat16(char* to, const Part& part) {
  for (size_t i = 0; i < kPart; ++i) store_as(to + 2 * i, Bfloat16::pack(part.v[i]));
}

// Rounded to nearest even: the sum with this constant has the units in the last bit of its
// mantissa.
PYCOMM_KERNEL_INLINE uint8_t to_integer(Floats v) {
  constexpr float kUnits = 0x1.8p23f;
  return static_cast<uint8_t>(__builtin_bit_cast(uint32_t, v + kUnits));
}
PYCOMM_KERNEL_INLINE void store_integers(char* to, const Part& part) {
  for (size_t i = 0; i < kPart; ++i) store_as(to + i, to_integer(part.v[i]));
}
PYCOMM_KERNEL_INLINE void store_half_bytes(char* to, const Part& part) {
  for (size_t i = 0; i < kPart / 2; ++i) {
    const unsigned low = to_integer(part.v[i]) & 15u, high = to_integer(part.v[i + kPart / 2]);
    store_as(to + i, static_cast<uint8_t>(low | high << 4));
  }
}

#elif PYCOMM_VECTOR_BYTES == 64

// The forms without a mask read an undefined register, of which GCC 12 warns.
inline constexpr uint16_t kAllLanes = 0xffff;
template <int kUpper>
PYCOMM_KERNEL_INLINE __m256i half_of(__m512i v) {
  return _mm512_maskz_extracti64x4_epi64(0xff, v, kUpper);
}
PYCOMM_KERNEL_INLINE uint32_t highest(Ints v) {
  const auto all = __builtin_bit_cast(__m512i, v);
  const __m256i eight = _mm256_max_epi32(half_of<0>(all), half_of<1>(all));
  return highest_of(
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1)));
}
PYCOMM_KERNEL_INLINE Words widen_16(const char* from) {
  return __builtin_bit_cast(Words, _mm512_maskz_cvtepu16_epi32(kAllLanes, load_as<__m256i>(from)));
}
PYCOMM_KERNEL_INLINE Ints widen_signed_8(const char* from) {
  return __builtin_bit_cast(Ints, _mm512_maskz_cvtepi8_epi32(kAllLanes, load_as<__m128i>(from)));
}
PYCOMM_KERNEL_INLINE Words widen_8(const char* from) {
  return __builtin_bit_cast(Words, _mm512_maskz_cvtepu8_epi32(kAllLanes, load_as<__m128i>(from)));
}
PYCOMM_KERNEL_INLINE Floats widen_half(const char* from) { return Float16::widen_half(from); }
PYCOMM_KERNEL_INLINE void narrow_half(char* to, Floats v) { store_as(to, Float16::narrow_half(v)); }

PYCOMM_KERNEL_INLINE void store_bfloat16(char* to, const Part& part) {
  for (int i = 0; i < kVectors; i += 2) {
    store_as(to + 2 * i * kLane, Bfloat16::pack_in_order({part.v[i], part.v[i + 1]}));
  }
}

PYCOMM_KERNEL_INLINE __m512i to_integers(Floats v) {
  return _mm512_maskz_cvtps_epi32(kAllLanes, v);
}
// The packing instructions work within 128 bits, so four bytes of each vector lie side by side.
PYCOMM_KERNEL_INLINE __m512i to_bytes(const Part& part) {
  const __m512i first = _mm512_packs_epi32(to_integers(part.v[0]), to_integers(part.v[1]));
  const __m512i second = _mm512_packs_epi32(to_integers(part.v[2]), to_integers(part.v[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_maskz_permutexvar_epi32(kAllLanes, order, _mm512_packs_epi16(first, second));
}
PYCOMM_KERNEL_INLINE void store_integers(char* to, const Part& part) {
  store_as(to, to_bytes(part));
}
PYCOMM_KERNEL_INLINE void store_half_bytes(char* to, const Part& part) {
  const __m512i bytes = to_bytes(part);
  const __m256i low = _mm256_and_si256(half_of<0>(bytes), _mm256_set1_epi8(15));
  const __m256i high = _mm256_slli_epi16(half_of<1>(bytes), 4);
  store_as(to, _mm256_or_si256(low, _mm256_andnot_si256(_mm256_set1_epi8(15), high)));
}
// Each half byte looks up its product.
PYCOMM_KERNEL_INLINE Part load_half_bytes(const char* from, float scale) {
  const Floats products = Floats{0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1} * scale;
  Part part;
  for (int i = 0; i < 2; ++i) {
    const auto bytes = __builtin_bit_cast(__m512i, widen_8(from + i * kLane));
    const auto high = __builtin_bit_cast(__m512i, __builtin_bit_cast(Words, bytes) >> 4);
    part.v[i] = _mm512_maskz_permutexvar_ps(kAllLanes, bytes, products);
    part.v[i + 2] = _mm512_maskz_permutexvar_ps(kAllLanes, high, products);
  }
  return part;
}

#else

PYCOMM_KERNEL_INLINE uint32_t highest(Ints v) {
  const auto eight = __builtin_bit_cast(__m256i, v);
  return highest_of(
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1)));
}
PYCOMM_KERNEL_INLINE Words widen_16(const char* from) {
  return __builtin_bit_cast(Words, _mm256_cvtepu16_epi32(load_as<__m128i>(from)));
}
PYCOMM_KERNEL_INLINE Ints widen_signed_8(const char* from) {
  return __builtin_bit_cast(Ints, _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(from))));
}
PYCOMM_KERNEL_INLINE Words widen_8(const char* from) {
  return __builtin_bit_cast(Words, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(from))));
}
PYCOMM_KERNEL_INLINE Floats widen_half(const char* from) { return Float16::widen_half(from); }
PYCOMM_KERNEL_INLINE void narrow_half(char* to, Floats v) { store_as(to, Float16::narrow_half(v)); }

PYCOMM_KERNEL_INLINE void store_bfloat16(char* to, const Part& part) {
  for (int i = 0; i < kVectors; i += 2) {
    store_as(to + 2 * i * kLane, Bfloat16::pack_in_order({part.v[i], part.v[i + 1]}));
  }
}

// The packing instructions work within 128 bits, so four bytes of each vector lie side by side.
PYCOMM_KERNEL_INLINE __m256i to_bytes(const Floats* v) {
  const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
  const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
}
PYCOMM_KERNEL_INLINE void store_integers(char* to, const Part& part) {
  store_as(to, to_bytes(part.v));
  store_as(to + kPart / 2, to_bytes(part.v + kVectors / 2));
}
PYCOMM_KERNEL_INLINE void store_half_bytes(char* to, const Part& part) {
  const __m256i low = _mm256_and_si256(to_bytes(part.v), _mm256_set1_epi8(15));
  const __m256i high = _mm256_slli_epi16(to_bytes(part.v + kVectors / 2), 4);
  store_as(to, _mm256_or_si256(low, _mm256_andnot_si256(_mm256_set1_epi8(15), high)));
}

#endif

#if PYCOMM_VECTOR_BYTES == 0
PYCOMM_KERNEL_INLINE bool any_nan(const Part& part) {
  bool any = false;
  for (float v : part.v) any |= v != v;
  return any;
}
#else
PYCOMM_KERNEL_INLINE bool any_nan(const Part& part) {
  int any = 0;
  for (int i = 0; i < kVectors; i += 2) any |= either_nan(part.v[i], part.v[i + 1]);
  return any;
}
#endif

#if PYCOMM_VECTOR_BYTES != 64
PYCOMM_KERNEL_INLINE Part load_half_bytes(const char* from, float scale) {
  Part part;
  for (int i = 0; i < kVectors / 2; ++i) {
    const Words bytes = widen_8(from + i * kLane);
    const Ints low = __builtin_bit_cast(Ints, bytes << 28) >> 28;
    const Ints high = __builtin_bit_cast(Ints, bytes << 24) >> 28;
    part.v[i] = convert<Floats>(low) * scale;
    part.v[i + kVectors / 2] = convert<Floats>(high) * scale;
  }
  return part;
}
#endif

}  // namespace
}  // namespace pycomm
