// SPDX-License-Identifier: MIT
// Moving the last elements of a range, fewer than a vector holds, into a padded unit and back.
//
// A small collective is nothing but such a rest. A copy of a few bytes followed by a load of the
// whole unit waits until the bytes have left the store buffer, so with AVX-512 the load itself is
// masked. In an unnamed namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu_formats.h"

#if PYCOMM_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

namespace pycomm {
namespace {

// Fills `unit` with `bytes` < N bytes and zeros.
template <size_t N>
PYCOMM_KERNEL_INLINE void load_rest(char (&unit)[N], const char* from, size_t bytes) {
#if PYCOMM_VECTOR_BYTES == 64
  const uint64_t mask = (uint64_t{1} << bytes) - 1;
  if constexpr (N == 64) {
    return store_as(unit, _mm512_maskz_loadu_epi8(mask, from));
  } else if constexpr (N == 32) {
    return store_as(unit, _mm256_maskz_loadu_epi8(static_cast<__mmask32>(mask), from));
  } else if constexpr (N == 16) {
    return store_as(unit, _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), from));
  }
#endif
  __builtin_memset(unit, 0, N);
  __builtin_memcpy(unit, from, bytes);
}

// Two moves of a fixed size that may overlap, in place of a call. Not masked: what is read back
// soon after a masked store waits for it.
PYCOMM_KERNEL_INLINE void store_rest(char* to, const char* unit, size_t bytes) {
  const auto ends = [&](auto part) {
    __builtin_memcpy(&part, unit + bytes - sizeof(part), sizeof(part));
    const auto last = part;
    __builtin_memcpy(&part, unit, sizeof(part));
    store_as(to, part);
    store_as(to + bytes - sizeof(last), last);
  };
  if (bytes >= 32) {
    ends(Vector<uint64_t, 4>{});
  } else if (bytes >= 16) {
    ends(Vector<uint64_t, 2>{});
  } else if (bytes >= 8) {
    ends(uint64_t{});
  } else if (bytes >= 4) {
    ends(uint32_t{});
  } else if (bytes >= 2) {
    ends(uint16_t{});
  } else if (bytes == 1) {
    *to = *unit;
  }
}

}  // namespace
}  // namespace pycomm
