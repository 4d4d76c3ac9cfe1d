// SPDX-License-Identifier: MIT
#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace pycomm {
namespace {

constexpr uint32_t kPolynomialReflected = 0x82f63b78u;
// Bytes of a lane. Joining lanes costs about as much as 100 bytes do; what is left over goes the
// slow way.
[[maybe_unused]] constexpr size_t kLongLane = 4096;
[[maybe_unused]] constexpr size_t kShortLane = 256;

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1) ^ ((value & 1) ? kPolynomialReflected : 0);
    }
    table[byte] = value;
  }
  return table;
}
constexpr auto kTable = make_table();

#if defined(__x86_64__)
// The product of two polynomials modulo the CRC's, bits reflected: the highest bit is x^0.
constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b >> 1) ^ ((b & 1) ? kPolynomialReflected : 0);
  }
  return product;
}

// What `zeros` bytes of zeros behind it make of a CRC: one look-up for each of its bytes.
using Shift = std::array<std::array<uint32_t, 256>, 4>;
constexpr Shift make_shift(size_t zeros) {
  uint32_t power = 1u << 31;   // x^0
  uint32_t square = 1u << 23;  // x^8, one byte
  for (; zeros != 0; zeros >>= 1) {
    if (zeros & 1) power = multiply(power, square);
    square = multiply(square, square);
  }
  Shift shift{};
  for (uint32_t k = 0; k < 4; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      shift[k][byte] = multiply(power, byte << 8 * k);
    }
  }
  return shift;
}

uint64_t load(const unsigned char* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof(word));
  return word;
}

// The instruction takes three cycles and one can begin in each: three lanes of the data side by
// side, joined as if the first two were followed by zeros.
template <size_t kLane>
__attribute__((target("sse4.2"))) void take_lanes(uint64_t& crc, const unsigned char*& at,
                                                  size_t& bytes) {
  static constexpr Shift kShift = make_shift(kLane);
  const auto shift = [](uint64_t value) {
    return kShift[0][value & 0xff] ^ kShift[1][value >> 8 & 0xff] ^ kShift[2][value >> 16 & 0xff] ^
           kShift[3][value >> 24 & 0xff];
  };
  for (; bytes >= 3 * kLane; bytes -= 3 * kLane, at += 3 * kLane) {
    uint64_t first = crc, second = 0, third = 0;
    for (size_t k = 0; k < kLane; k += 8) {
      first = _mm_crc32_u64(first, load(at + k));
      second = _mm_crc32_u64(second, load(at + kLane + k));
      third = _mm_crc32_u64(third, load(at + 2 * kLane + k));
    }
    crc = shift(shift(first) ^ second) ^ third;
  }
}

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(uint32_t crc, const void* data,
                                                        size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  uint64_t value = ~crc;
  take_lanes<kLongLane>(value, at, bytes);
  take_lanes<kShortLane>(value, at, bytes);
  for (; bytes >= 8; bytes -= 8, at += 8) value = _mm_crc32_u64(value, load(at));
  auto narrow = static_cast<uint32_t>(value);
  for (; bytes > 0; --bytes, ++at) narrow = _mm_crc32_u8(narrow, *at);
  return ~narrow;
}
#endif

}  // namespace

uint32_t crc32c_table(uint32_t crc, const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  uint32_t value = ~crc;
  for (; bytes > 0; --bytes, ++at) value = (value >> 8) ^ kTable[(value ^ *at) & 0xff];
  return ~value;
}

uint32_t crc32c(uint32_t crc, const void* data, size_t bytes) {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("sse4.2");
  if (fast) return crc32c_sse42(crc, data, bytes);
#endif
  return crc32c_table(crc, data, bytes);
}

}  // namespace pycomm
