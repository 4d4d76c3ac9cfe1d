// SPDX-License-Identifier: MIT
// Many tensors into one bucket or back, in one launch: converted, scaled, and checked on the way.
//
// A block takes a tile of kPackTileElements or less, looks up where it lies, and moves it in
// 16-byte accesses where both sides can be aligned together, else element by element; meanwhile the
// place of its next tile is on its way. nvcc instantiates it in cuda_pack.cu, g++ in
// host_kernels.cc. See device_env.h for what a body is.
#pragma once

#include "kernels/device_formats.h"
#include "kernels/device_pack.h"
#include "kernels/reduce_body.h"

namespace pycomm {
namespace {

// Of a code: whether it is infinite or NaN.
template <class Format>
PYCOMM_KERNEL_INLINE bool is_not_finite(typename Format::Code code) {
  if constexpr (std::is_same_v<Format, HalfElement>) {
    return (code & 0x7c00u) == 0x7c00u;
  } else if constexpr (std::is_same_v<Format, Bfloat16Element>) {
    return (code & 0x7f80u) == 0x7f80u;
  } else if constexpr (sizeof(code) == 4) {
    return (__builtin_bit_cast(uint32_t, code) & kInfinityBits) == kInfinityBits;
  } else {
    return (__builtin_bit_cast(uint64_t, code) >> 52 & 0x7ffu) == 0x7ffu;
  }
}

// What happens to an element. `raw`: nothing does, and a NaN keeps its bits.
template <class From, class To>
struct Conversion {
  using Value = typename To::Value;
  Value scale;
  bool raw, accumulate, check;

  template <class Env>
  PYCOMM_KERNEL_INLINE typename To::Code of(const Env& env, typename From::Code code,
                                            typename To::Code before, uint32_t& found) const {
    const typename To::Code result = converted(env, code, before);
    if (check && is_not_finite<To>(result)) {
      found |= is_not_finite<From>(code) ? kPackWasNotFinite : kPackOverflowed;
    }
    return result;
  }

 private:
  template <class Env>
  PYCOMM_KERNEL_INLINE typename To::Code converted(const Env& env, typename From::Code code,
                                                   typename To::Code before) const {
    if constexpr (std::is_same_v<From, To>) {
      if (raw) return code;
    }
    Value value = static_cast<Value>(From::widen(env, code)) * scale;
    if (accumulate) value = To::widen(env, before) + value;
    return To::narrow(env, value);
  }
};

// As many elements as fill 16 bytes on the narrower side.
template <class From, class To>
inline constexpr int kUnit =
    16 / (sizeof(typename From::Code) < sizeof(typename To::Code) ? sizeof(typename From::Code)
                                                                  : sizeof(typename To::Code));

template <class Format, int kCount>
struct Unit {
  static constexpr int kVectors = kCount * sizeof(typename Format::Code) / 16;
  static constexpr int kPerVector = kCount / kVectors;
  Lanes<typename Format::Code> vectors[kVectors];
  PYCOMM_KERNEL_INLINE auto& lane(int i) { return vectors[i / kPerVector].lane[i % kPerVector]; }
};
template <class Format, int kCount, class Env>
PYCOMM_KERNEL_INLINE Unit<Format, kCount> load_unit(const Env& env, const char* from) {
  Unit<Format, kCount> unit;
  PYCOMM_UNROLL
  for (int v = 0; v < unit.kVectors; ++v) {
    unit.vectors[v] = load_lanes<typename Format::Code>(env, from + 16 * v);
  }
  return unit;
}

// What one thread of `threads` does of `count` elements.
template <class From, class To, class Env>
PYCOMM_KERNEL_INLINE uint32_t convert_share(const Env& env, const char* from, char* to,
                                            uint32_t count, int thread,
                                            const Conversion<From, To>& conversion) {
  constexpr uint32_t kFrom = sizeof(typename From::Code), kTo = sizeof(typename To::Code);
  constexpr int kCount = kUnit<From, To>;
  const auto first = static_cast<uint32_t>(thread), step = static_cast<uint32_t>(env.threads());
  uint32_t head = static_cast<uint32_t>((16 - bytes_past_16(to)) % 16 / kTo);
  const bool together =
      bytes_past_16(to + head * kTo) == 0 && bytes_past_16(from + head * kFrom) == 0;
  if (!together || head > count) head = count;
  const uint32_t units = (count - head) / kCount;
  uint32_t found = 0;
  for (uint32_t u = first; u < units; u += step) {
    const char* const source = from + (head + u * kCount) * size_t{kFrom};
    char* const target = to + (head + u * kCount) * size_t{kTo};
    auto in = load_unit<From, kCount>(env, source);
    Unit<To, kCount> out = {};
    if (conversion.accumulate) out = load_unit<To, kCount>(env, target);
    PYCOMM_UNROLL
    for (int i = 0; i < kCount; ++i) {
      out.lane(i) = conversion.of(env, in.lane(i), out.lane(i), found);
    }
    PYCOMM_UNROLL
    for (int v = 0; v < out.kVectors; ++v) {
      env.store16(target + 16 * v, __builtin_bit_cast(Bytes16, out.vectors[v]));
    }
  }
  const uint32_t alone = count - units * kCount;
  for (uint32_t e = first; e < alone; e += step) {
    const uint32_t i = e < head ? e : e + units * kCount;
    char* const target = to + size_t{i} * kTo;
    typename To::Code before = {};
    if (conversion.accumulate) before = env.template load<typename To::Code>(target);
    const auto code = env.template load<typename From::Code>(from + size_t{i} * kFrom);
    env.store(target, conversion.of(env, code, before, found));
  }
  return found;
}

template <class From, class To>
struct PackBody {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerProcessor = 6;
  const PackTile* tiles;
  size_t tile_count;
  void* const* tensors;
  char* bucket;
  uint32_t* flags;
  Conversion<From, To> conversion;
  bool to_bucket;

  template <class Env>
  PYCOMM_KERNEL_INLINE void operator()(const Env& env) const {
    env.each_thread([&](int thread) {
      uint32_t found = 0;
      size_t next = env.block();
      if (next >= tile_count) return;
      PackTile tile = tiles[next];
      char* tensor = static_cast<char*>(tensors[tile.tensor]);
      while (true) {
        const PackTile now = tile;
        char* const base = tensor;
        next += env.blocks();
        const bool more = next < tile_count;
        if (more) {
          tile = tiles[next];
          tensor = static_cast<char*>(tensors[tile.tensor]);
        }
        found |= to_bucket ? move<From, To>(env, base, now.in_tensor, bucket, now.in_bucket,
                                            now.count, thread)
                           : move<From, To>(env, bucket, now.in_bucket, base, now.in_tensor,
                                            now.count, thread);
        if (!more) break;
      }
      if (found != 0) env.raise(flags, found);
    });
  }

 private:
  template <class F, class T, class Env>
  PYCOMM_KERNEL_INLINE uint32_t move(const Env& env, const char* from, uint64_t in_from, char* to,
                                     uint64_t in_to, uint32_t count, int thread) const {
    return convert_share<F, T>(env, from + in_from * sizeof(typename F::Code),
                               to + in_to * sizeof(typename T::Code), count, thread, conversion);
  }
};

}  // namespace
}  // namespace pycomm
