// SPDX-License-Identifier: MIT
// Sums out of encoded and plain sources: the order, the one division, the target among the sources.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "kernels/codec.h"
#include "kernels/cpu_kernels.h"
#include "kernels_codec_reference.h"

using namespace pycomm;
using codec_reference::Bytes;
using codec_reference::Floats;
using codec_reference::Kind;

namespace {

constexpr Wire kWires[] = {Wire::fp32, Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4};
constexpr size_t kCounts[] = {0, 1, 7, 63, 64, 65, 255, 256, 257, 1000, 4099};

// Sources of one sum, the odd ones plain, and what they hold in float32.
struct Sources {
  std::vector<Bytes> bytes;
  std::vector<Floats> values;
  std::vector<const std::byte*> encoded;
  std::vector<const float*> plain;
};

Sources make(std::mt19937_64& random, Wire wire, Kind kind, int k, size_t count) {
  Sources made;
  const Codec& codec = codec_for(wire);
  made.bytes.resize(k);
  for (int s = 0; s < k; ++s) {
    made.values.push_back(codec_reference::values(random, kind, count));
    if (s % 2 == 1) continue;
    made.bytes[s].resize(codec.wire_bytes(count) + 1);
    auto* out = reinterpret_cast<std::byte*>(made.bytes[s].data());
    codec.round_trip(made.values[s].data(), out, count);
  }
  for (int s = 0; s < k; ++s) {
    const bool plain = s % 2 == 1;
    made.plain.push_back(plain ? made.values[s].data() : nullptr);
    made.encoded.push_back(plain ? nullptr
                                 : reinterpret_cast<const std::byte*>(made.bytes[s].data()));
  }
  return made;
}

float expected_sum(const Sources& sources, size_t i, int divisor) {
  float sum = sources.values[0][i];
  for (size_t s = 1; s < sources.values.size(); ++s) sum += sources.values[s][i];
  return sum / static_cast<float>(divisor);
}

}  // namespace

TEST("a sum is taken in source order in float32 and divided once, alike at every level") {
  std::mt19937_64 random(kernels_data::seed());
  for (Wire wire : kWires) {
    for (Kind kind : {Kind::gaussian, Kind::wide, Kind::hostile}) {
      for (int k : {1, 2, 3, 5, 8}) {
        for (size_t count : kCounts) {
          const Sources sources = make(random, wire, kind, k, count);
          for (int divisor : {1, 3, 4}) {
            for (int i = 0; i <= static_cast<int>(hardware_cpu_level()); ++i) {
              const auto level = static_cast<CpuLevel>(i);
              Floats out(count + 1, 123.0f);
              codec_at(level, wire)
                  .reduce(out.data(), sources.encoded.data(), sources.plain.data(), k, count,
                          divisor);
              CHECK(out.back() == 123.0f, "out of bounds");
              for (size_t e = 0; e < count; ++e) {
                const float want = expected_sum(sources, e, divisor);
                const auto bits = __builtin_bit_cast(uint32_t, out[e]);
                CHECK(std::isnan(want) ? bits == 0x7fc00000
                                       : bits == __builtin_bit_cast(uint32_t, want),
                      name_of(wire), " k=", k, " count=", count, " divisor=", divisor, " at ",
                      name_of(level), ": element ", e, " is ", out[e], ", expected ", want);
              }
            }
          }
        }
      }
    }
  }
}

TEST("the target may be one of the plain sources") {
  std::mt19937_64 random(kernels_data::seed());
  for (Wire wire : kWires) {
    for (size_t count : kCounts) {
      Sources sources = make(random, wire, Kind::gaussian, 4, count);
      Floats apart(count);
      codec_for(wire).reduce(apart.data(), sources.encoded.data(), sources.plain.data(), 4, count);
      float* target = sources.values[3].data();
      codec_for(wire).reduce(target, sources.encoded.data(), sources.plain.data(), 4, count);
      CHECK(apart == sources.values[3], name_of(wire), " of ", count);
    }
  }
}

TEST("an average is divided in float32 before it is narrowed") {
  // In float16 the sum of two 40000s is Inf, and half of the smallest subnormal is lost.
  const float smallest = std::ldexp(1.0f, -149);
  for (float value : {40000.0f, 3.0e38f / 2, 3 * smallest}) {
    const Floats in(256, value);
    const Codec& codec = codec_for(Wire::fp16s);
    Bytes bytes(codec.wire_bytes(256));
    auto* out = reinterpret_cast<std::byte*>(bytes.data());
    codec.encode(in.data(), out, 256);
    const std::byte* encoded[] = {out, out};
    const float* plain[] = {nullptr, nullptr};
    Floats mean(256);
    codec.reduce(mean.data(), encoded, plain, 2, 256, 2);
    codec.round_trip(mean.data(), out, 256);
    CHECK(std::fabs(mean[7] - value) <= value / 1024, "the mean of two ", value, " is ", mean[7]);
  }
}
