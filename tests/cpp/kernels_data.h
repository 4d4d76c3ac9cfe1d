// SPDX-License-Identifier: MIT
// Random input for the kernel tests, from a printed seed, rich in the values that break kernels.
//
// Per element: half ordinary numbers, a quarter random bits, a quarter specials (NaN of several
// payloads and signs, infinities, both zeros, subnormals, the largest values). Test code, one
// thread.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "base/dtype.h"

namespace kernels_data {

using pycomm::DType;

// PYCOMM_TEST_SEED repeats a run.
inline uint64_t seed() {
  static const uint64_t value = [] {
    const char* given = std::getenv("PYCOMM_TEST_SEED");
    const uint64_t chosen = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
    std::printf("PYCOMM_TEST_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    return chosen;
  }();
  return value;
}

constexpr std::array<uint32_t, 12> kSpecials32{0x00000000, 0x80000000, 0x7f800000, 0xff800000,
                                               0x7fc00000, 0xffc12345, 0x7f800001, 0x00000001,
                                               0x807fffff, 0x7f7fffff, 0xff7fffff, 0x00800000};
constexpr std::array<uint64_t, 12> kSpecials64{
    0x0000000000000000, 0x8000000000000000, 0x7ff0000000000000, 0xfff0000000000000,
    0x7ff8000000000000, 0xfff8000012345678, 0x7ff0000000000001, 0x0000000000000001,
    0x800fffffffffffff, 0x7fefffffffffffff, 0xffefffffffffffff, 0x0010000000000000};
constexpr std::array<uint16_t, 12> kSpecials16{0x0000, 0x8000, 0x7c00, 0xfc00, 0x7e00, 0xfe01,
                                               0x7c01, 0x0001, 0x83ff, 0x7bff, 0xfbff, 0x7f80};

template <class Bits>
Bits special(std::mt19937_64& random) {
  const size_t i = random() % 12;
  if constexpr (sizeof(Bits) == 8) return kSpecials64[i];
  if constexpr (sizeof(Bits) == 4) return kSpecials32[i];
  if constexpr (sizeof(Bits) == 2) return kSpecials16[i];
  return static_cast<Bits>(random());
}

template <class Bits, class Ordinary>
void fill_as(std::mt19937_64& random, std::vector<char>& bytes, const Ordinary& ordinary) {
  for (size_t at = 0; at + sizeof(Bits) <= bytes.size(); at += sizeof(Bits)) {
    const uint64_t kind = random() % 4;
    const Bits bits = kind < 2    ? ordinary()
                      : kind == 2 ? static_cast<Bits>(random())
                                  : special<Bits>(random);
    std::memcpy(&bytes[at], &bits, sizeof bits);
  }
}

inline void fill(std::mt19937_64& random, DType dtype, std::vector<char>& bytes) {
  std::normal_distribution<double> normal(0.0, 1.0);
  const auto as_double = [&] { return __builtin_bit_cast(uint64_t, normal(random)); };
  const auto as_float = [&] {
    return __builtin_bit_cast(uint32_t, static_cast<float>(normal(random)));
  };
  const auto as_bfloat16 = [&] { return static_cast<uint16_t>(as_float() >> 16); };
  // A float16 between 2^-5 and 2^5.
  const auto as_half = [&] {
    return static_cast<uint16_t>((random() & 0x83ff) | (10 + random() % 10) << 10);
  };
  switch (dtype) {
    case DType::float32:
    case DType::complex64:
      return fill_as<uint32_t>(random, bytes, as_float);
    case DType::float64:
    case DType::complex128:
      return fill_as<uint64_t>(random, bytes, as_double);
    case DType::bfloat16:
      return fill_as<uint16_t>(random, bytes, as_bfloat16);
    case DType::float16:
    case DType::complex32:
      return fill_as<uint16_t>(random, bytes, as_half);
    case DType::boolean:
      return fill_as<uint8_t>(random, bytes, [&] { return static_cast<uint8_t>(random() & 1); });
    default:  // 8-bit floats and integers: any bits
      return fill_as<uint8_t>(random, bytes, [&] { return static_cast<uint8_t>(random()); });
  }
}

}  // namespace kernels_data
