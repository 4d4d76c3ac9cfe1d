// SPDX-License-Identifier: MIT
#include "kernels/codec.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "kernels/codec_kernels.h"
#include "kernels/codec_layout.h"
#include "kernels/cpu_kernels.h"

namespace pycomm {
namespace {

using Codecs = std::array<Codec, kWireCount>;

Codecs codecs_of(CpuLevel level) {
  Codecs codecs{};
  for (int w = 0; w < kWireCount; ++w) {
    const auto wire = static_cast<Wire>(w);
    codecs[w] = {wire, block_of(wire), &cpu_kernels_at(level).codecs[w]};
  }
  return codecs;
}

const Codec& pick(const Codecs& codecs, Wire wire) {
  PYCOMM_ASSERT(static_cast<int>(wire) < kWireCount, name_of(wire));
  return codecs[static_cast<size_t>(wire)];
}

}  // namespace

size_t Codec::wire_bytes(size_t count) const {
  switch (wire) {
    case Wire::fp32:
      return count * 4;
    case Wire::bf16:
      return count * 2;
    case Wire::fp16s:
      return encoded_bytes<Fp16sLayout>(count);
    case Wire::int8:
      return encoded_bytes<Int8Layout>(count);
    case Wire::int4:
      return encoded_bytes<Int4Layout>(count);
  }
  return 0;
}

void Codec::encode(const float* in, std::byte* out, size_t count, float scale) const {
  PYCOMM_ASSERT(std::isfinite(scale), "scale ", scale);
  kernels->encode(in, reinterpret_cast<char*>(out), count, scale);
}

void Codec::decode(const std::byte* in, float* out, size_t count, float scale) const {
  PYCOMM_ASSERT(std::isfinite(scale), "scale ", scale);
  kernels->decode(reinterpret_cast<const char*>(in), out, count, scale);
}

void Codec::round_trip(float* inout, std::byte* out, size_t count) const {
  kernels->round_trip(inout, reinterpret_cast<char*>(out), count);
}

void Codec::encode_with_residual(const float* values, const float* before, float* after,
                                 std::byte* out, float* decoded, size_t count) const {
  kernels->feedback(values, {before, after}, reinterpret_cast<char*>(out), decoded, count);
}

void Codec::reduce(float* target, const std::byte* const* encoded, const float* const* plain,
                   int source_count, size_t count, int divisor) const {
  PYCOMM_ASSERT(source_count >= 1 && divisor >= 1, source_count, " sources, divisor ", divisor);
  kernels->reduce(target, {encoded, plain, source_count}, count, divisor);
}

const Codec& codec_at(CpuLevel level, Wire wire) {
  static const std::array<Codecs, 3> all = [] {
    std::array<Codecs, 3> levels{};
    for (int i = 0; i <= static_cast<int>(hardware_cpu_level()); ++i) {
      levels[i] = codecs_of(static_cast<CpuLevel>(i));
    }
    return levels;
  }();
  cpu_kernels_at(level);  // throws where the machine lacks it
  return pick(all[static_cast<size_t>(level)], wire);
}

const Codec& codec_for(Wire wire) {
  static const Codecs codecs = codecs_of(best_cpu_level());
  return pick(codecs, wire);
}

}  // namespace pycomm
