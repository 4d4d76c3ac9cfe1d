// SPDX-License-Identifier: MIT
// Encoding to a narrow wire format, and sums out of encodings, as a GPU does them: 32 lanes take
// 256 elements at a time, which stay in registers.
//
// Floats move in 16-byte accesses, codes in as wide ones as the format's headers leave aligned. The
// last unit, and memory at odd addresses, go element by element. See device_env.h for what a body
// is, and for lanes.
#pragma once

#include "kernels/codec_device_formats.h"
#include "kernels/device_codec.h"
#include "kernels/reduce_body.h"

namespace pycomm {
namespace {

constexpr int kQuads = 2;
struct LaneFloats {
  float v[4 * kQuads];
};
struct LaneCodes {
  uint32_t v[4 * kQuads];
};

template <class Format, class Env>
PYCOMM_KERNEL_INLINE LaneFloats load_floats_of_lane(const Env& env, const float* unit, int lane,
                                                    size_t left) {
  LaneFloats floats;
  const bool wide = left >= kUnitElements && bytes_past_16(unit) == 0;
  PYCOMM_UNROLL
  for (int q = 0; q < kQuads; ++q) {
    const auto first = static_cast<size_t>(Format::element(lane, q));
    if (wide) {
      const auto in = load_lanes<float>(env, reinterpret_cast<const char*>(unit + first));
      PYCOMM_UNROLL
      for (int i = 0; i < 4; ++i) floats.v[4 * q + i] = in.lane[i];
    } else {
      PYCOMM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const auto* from = reinterpret_cast<const char*>(unit) + 4 * (first + i);
        floats.v[4 * q + i] = first + i < left ? env.template load<float>(from) : 0.0f;
      }
    }
  }
  return floats;
}

template <class Format, class Env>
PYCOMM_KERNEL_INLINE void store_floats_of_lane(const Env& env, float* unit, int lane, size_t left,
                                               const LaneFloats& floats) {
  const bool wide = left >= kUnitElements && bytes_past_16(unit) == 0;
  PYCOMM_UNROLL
  for (int q = 0; q < kQuads; ++q) {
    const auto first = static_cast<size_t>(Format::element(lane, q));
    auto* const to = reinterpret_cast<char*>(unit) + 4 * first;
    if (wide) {
      Lanes<float> out;
      PYCOMM_UNROLL
      for (int i = 0; i < 4; ++i) out.lane[i] = floats.v[4 * q + i];
      env.store16(to, __builtin_bit_cast(Bytes16, out));
    } else {
      PYCOMM_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (first + i < left) env.store(to + 4 * i, floats.v[4 * q + i]);
      }
    }
  }
}

// Where the block of a lane begins, and which of its codes a quad's first one is.
template <class Format>
PYCOMM_KERNEL_INLINE char* block_of_lane(char* unit, int lane) {
  return unit + Format::element(lane, 0) / Format::kBlock * Format::kBlockBytes;
}
template <class Format>
PYCOMM_KERNEL_INLINE size_t code_of_quad(int lane, int quad) {
  const int block = kHalvesBytes<Format> ? Format::kBlock / 2 : Format::kBlock;
  return static_cast<size_t>(Format::element(lane, quad) % block);
}

// Four codes in one access of kBytes = 4 or 8, or one by one; `codes` says how many there are.
template <class Format, class Env>
PYCOMM_KERNEL_INLINE void store_quad(const Env& env, char* to, const uint32_t* codes,
                                     size_t count) {
  using Word = std::conditional_t<Format::kCodeBytes == 1, uint32_t, uint64_t>;
  if (count >= 4 && reinterpret_cast<uintptr_t>(to) % sizeof(Word) == 0) {
    Word word = 0;
    PYCOMM_UNROLL
    for (int i = 0; i < 4; ++i) word |= static_cast<Word>(codes[i]) << (8 * Format::kCodeBytes * i);
    return env.store(to, word);
  }
  PYCOMM_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (static_cast<size_t>(i) >= count) break;
    PYCOMM_UNROLL
    for (int b = 0; b < Format::kCodeBytes; ++b) {
      env.store(to + i * Format::kCodeBytes + b, static_cast<uint8_t>(codes[i] >> (8 * b)));
    }
  }
}
template <class Format, class Env>
PYCOMM_KERNEL_INLINE void load_quad(const Env& env, const char* from, uint32_t* codes,
                                    size_t count) {
  using Word = std::conditional_t<Format::kCodeBytes == 1, uint32_t, uint64_t>;
  constexpr uint32_t kCodeMask = Format::kCodeBytes == 1 ? 0xff : 0xffff;
  if (count >= 4 && reinterpret_cast<uintptr_t>(from) % sizeof(Word) == 0) {
    const auto word = env.template load<Word>(from);
    PYCOMM_UNROLL
    for (int i = 0; i < 4; ++i) {
      codes[i] = static_cast<uint32_t>(word >> (8 * Format::kCodeBytes * i)) & kCodeMask;
    }
    return;
  }
  PYCOMM_UNROLL
  for (int i = 0; i < 4; ++i) {
    codes[i] = 0;
    if (static_cast<size_t>(i) >= count) continue;
    PYCOMM_UNROLL
    for (int b = 0; b < Format::kCodeBytes; ++b) {
      const auto* at = from + i * Format::kCodeBytes + b;
      codes[i] |= uint32_t{env.template load<uint8_t>(at)} << (8 * b);
    }
  }
}
PYCOMM_KERNEL_INLINE size_t elements_left(int first, size_t left) {
  return static_cast<size_t>(first) < left ? left - static_cast<size_t>(first) : 0;
}

template <class Format, class Env>
PYCOMM_KERNEL_INLINE void store_codes(const Env& env, char* unit, int lane, size_t left,
                                      const BlockScale& scale, const LaneCodes& codes) {
  char* const block = block_of_lane<Format>(unit, lane);
  char* const data = block + Format::kHeaderBytes;
  const bool first =
      lane % Format::kLanes == 0 && elements_left(Format::element(lane, 0), left) > 0;
  if (Format::kHeaderBytes > 0 && first) {
    PYCOMM_UNROLL
    for (int b = 0; b < static_cast<int>(Format::kHeaderBytes); ++b) {
      env.store(block + b, static_cast<uint8_t>(scale.header >> (8 * b)));
    }
  }
  if constexpr (kHalvesBytes<Format>) {
    uint32_t bytes[4];
    PYCOMM_UNROLL
    for (int i = 0; i < 4; ++i) bytes[i] = codes.v[i] | codes.v[4 + i] << 4;
    store_quad<Format>(env, data + code_of_quad<Format>(lane, 0), bytes,
                       elements_left(Format::element(lane, 0), left));
  } else {
    PYCOMM_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      store_quad<Format>(env, data + code_of_quad<Format>(lane, q) * Format::kCodeBytes,
                         codes.v + 4 * q, elements_left(Format::element(lane, q), left));
    }
  }
}

// What a lane's elements of an encoded unit decode to.
template <class Format, class Env>
PYCOMM_KERNEL_INLINE LaneFloats load_decoded(const Env& env, const char* unit, int lane,
                                             size_t left) {
  const char* const block = block_of_lane<Format>(const_cast<char*>(unit), lane);
  const char* const data = block + Format::kHeaderBytes;
  uint32_t header = 0;
  if (elements_left(Format::element(lane, 0), left) > 0) {
    PYCOMM_UNROLL
    for (int b = 0; b < static_cast<int>(Format::kHeaderBytes); ++b) {
      header |= uint32_t{env.template load<uint8_t>(block + b)} << (8 * b);
    }
  }
  LaneCodes codes;
  if constexpr (kHalvesBytes<Format>) {
    load_quad<Format>(env, data + code_of_quad<Format>(lane, 0), codes.v,
                      elements_left(Format::element(lane, 0), left));
    PYCOMM_UNROLL
    for (int i = 0; i < 4; ++i) {
      codes.v[4 + i] = codes.v[i] >> 4;
      codes.v[i] &= 15;
    }
  } else {
    PYCOMM_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      load_quad<Format>(env, data + code_of_quad<Format>(lane, q) * Format::kCodeBytes,
                        codes.v + 4 * q, elements_left(Format::element(lane, q), left));
    }
  }
  LaneFloats floats;
  PYCOMM_UNROLL
  for (int i = 0; i < 4 * kQuads; ++i) floats.v[i] = Format::decode(env, header, codes.v[i]);
  return floats;
}

template <class Format>
struct EncodeBody {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerProcessor = 4;
  const float* in;
  char* out;
  size_t count;
  float scale;
  float* decoded;

  template <class Env>
  PYCOMM_KERNEL_INLINE void operator()(const Env& env) const {
    env.each_warp([&](size_t warp, size_t warps) {
      for (size_t u = warp; u * kUnitElements < count; u += warps) unit(env, u);
    });
  }

 private:
  template <class Env>
  PYCOMM_KERNEL_INLINE void unit(const Env& env, size_t u) const {
    const size_t begin = u * kUnitElements, left = count - begin;
    typename Env::template PerLane<LaneFloats> floats;
    typename Env::template PerLane<uint32_t> largest;
    env.each_lane([&](int lane) {
      LaneFloats& mine = floats[lane];
      mine = load_floats_of_lane<Format>(env, in + begin, lane, left);
      largest[lane] = 0;
      PYCOMM_UNROLL
      for (int i = 0; i < 4 * kQuads; ++i) {
        if (scale != 1.0f) mine.v[i] *= scale;
        const uint32_t bits = __builtin_bit_cast(uint32_t, mine.v[i]) & 0x7fffffffu;
        largest[lane] = bits > largest[lane] ? bits : largest[lane];
      }
    });
    env.template max_over<Format::kLanes>(largest);
    env.each_lane([&](int lane) {
      const BlockScale found = Format::prepare(largest[lane]);
      LaneCodes codes;
      PYCOMM_UNROLL
      for (int i = 0; i < 4 * kQuads; ++i)
        codes.v[i] = Format::encode(env, found, floats[lane].v[i]);
      store_codes<Format>(env, out + u * kUnitBytes<Format>, lane, left, found, codes);
      if (decoded == nullptr) return;
      LaneFloats back;
      PYCOMM_UNROLL
      for (int i = 0; i < 4 * kQuads; ++i) {
        back.v[i] = canonical(Format::decode(env, found.header, codes.v[i]));
      }
      store_floats_of_lane<Format>(env, decoded + begin, lane, left, back);
    });
  }
};

template <class Format>
struct SumEncodedBody {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerProcessor = 4;
  const char* encoded[kCodecSourcesMax];
  const float* plain[kCodecSourcesMax];
  float* target;
  int source_count;
  size_t count;
  float factor, divisor;

  template <class Env>
  PYCOMM_KERNEL_INLINE void operator()(const Env& env) const {
    env.each_warp([&](size_t warp, size_t warps) {
      for (size_t u = warp; u * kUnitElements < count; u += warps) {
        const size_t begin = u * kUnitElements, left = count - begin;
        env.each_lane([&](int lane) {
          LaneFloats sum = load(env, 0, u, lane, left);
          for (int s = 1; s < source_count; ++s) {
            const LaneFloats more = load(env, s, u, lane, left);
            PYCOMM_UNROLL
            for (int i = 0; i < 4 * kQuads; ++i) sum.v[i] += more.v[i];
          }
          PYCOMM_UNROLL
          for (int i = 0; i < 4 * kQuads; ++i) {
            sum.v[i] = canonical(divisor == 1.0f ? sum.v[i] * factor : sum.v[i] / divisor);
          }
          store_floats_of_lane<Format>(env, target + begin, lane, left, sum);
        });
      }
    });
  }

 private:
  template <class Env>
  PYCOMM_KERNEL_INLINE LaneFloats load(const Env& env, int source, size_t u, int lane,
                                       size_t left) const {
    if (encoded[source] != nullptr) {
      return load_decoded<Format>(env, encoded[source] + u * kUnitBytes<Format>, lane, left);
    }
    return load_floats_of_lane<Format>(env, plain[source] + u * kUnitElements, lane, left);
  }
};

}  // namespace
}  // namespace pycomm
