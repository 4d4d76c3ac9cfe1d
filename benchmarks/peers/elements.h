// SPDX-License-Identifier: MIT
// Inputs that every contender's first result is checked with: small integers in a pattern, so that
// each sum is exact in every dtype whatever the order of additions.
//
// Element i of rank r is (i + 3 r) mod 11. Elements are compared as raw words, so only encode()
// knows what a dtype is. Pure functions; elements.py does the same for ranks in Python.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace peers {

inline constexpr int kPeriod = 11;

inline int value_of(int rank, size_t element) {
  return static_cast<int>((element + 3 * static_cast<size_t>(rank)) % kPeriod);
}

// Bytes of one element; 0: a dtype that is not known.
inline size_t size_of(const std::string& dtype) {
  if (dtype == "int8") return 1;
  if (dtype == "float16" || dtype == "bfloat16") return 2;
  if (dtype == "float32" || dtype == "int32") return 4;
  if (dtype == "float64" || dtype == "int64") return 8;
  return 0;
}

// 0 to 255 as an element.
inline uint64_t encode(const std::string& dtype, int value) {
  uint64_t word = 0;
  const auto as = [&](auto element) { std::memcpy(&word, &element, sizeof(element)); };
  if (dtype == "float64") {
    as(static_cast<double>(value));
  } else if (dtype == "float32" || dtype == "bfloat16") {
    as(static_cast<float>(value));
    if (dtype == "bfloat16") word >>= 16;
  } else if (dtype == "float16") {
    if (value == 0) return 0;
    const int exponent = 31 - __builtin_clz(static_cast<unsigned>(value));
    as(static_cast<uint16_t>(((exponent + 15) << 10) |
                             ((value - (1 << exponent)) << (10 - exponent))));
  } else {
    word = static_cast<uint64_t>(value);
  }
  return word;
}

// The words at i mod 11.
using Pattern = std::vector<uint64_t>;

inline Pattern pattern_of(const std::string& dtype, int rank) {
  Pattern words;
  for (size_t i = 0; i < kPeriod; ++i) words.push_back(encode(dtype, value_of(rank, i)));
  return words;
}
inline Pattern sum_of(const std::string& dtype, int world) {
  Pattern words;
  for (size_t i = 0; i < kPeriod; ++i) {
    int sum = 0;
    for (int rank = 0; rank < world; ++rank) sum += value_of(rank, i);
    words.push_back(encode(dtype, sum));
  }
  return words;
}

// visit(word index in the pattern, element) for `count` elements that begin with pattern[phase].
template <class Word, class Visit>
void walk(std::byte* data, size_t count, size_t phase, const Visit& visit) {
  auto* element = reinterpret_cast<Word*>(data);
  size_t at = phase % kPeriod;
  for (size_t i = 0; i < count; ++i) {
    visit(at, element[i]);
    if (++at == kPeriod) at = 0;
  }
}
template <class Visit>
void walk_sized(size_t itemsize, std::byte* data, size_t count, size_t phase, const Visit& visit) {
  if (itemsize == 1) walk<uint8_t>(data, count, phase, visit);
  if (itemsize == 2) walk<uint16_t>(data, count, phase, visit);
  if (itemsize == 4) walk<uint32_t>(data, count, phase, visit);
  if (itemsize == 8) walk<uint64_t>(data, count, phase, visit);
}

inline void fill(size_t itemsize, std::byte* data, size_t count, const Pattern& words,
                 size_t phase) {
  walk_sized(itemsize, data, count, phase, [&](size_t at, auto& element) {
    element = static_cast<std::decay_t<decltype(element)>>(words[at]);
  });
}
inline size_t count_wrong(size_t itemsize, std::byte* data, size_t count, const Pattern& words,
                          size_t phase) {
  size_t wrong = 0;
  walk_sized(itemsize, data, count, phase, [&](size_t at, auto& element) {
    wrong += element != static_cast<std::decay_t<decltype(element)>>(words[at]);
  });
  return wrong;
}

}  // namespace peers
