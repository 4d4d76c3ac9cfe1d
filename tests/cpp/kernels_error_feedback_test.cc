// SPDX-License-Identifier: MIT
// Encoding with residuals against its definition, element by element.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/limits.h"
#include "check.h"
#include "kernels/cpu_kernels.h"
#include "kernels/error_feedback.h"

using namespace pycomm;

namespace {

constexpr Wire kWires[] = {Wire::fp32, Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4};
// Odd, less than a block, and more than is worked on at a time.
const size_t kCounts[] = {0, 1, 63, 257, kFeedbackElements, 2 * kFeedbackElements + 1000 + 7};

std::vector<float> normal(size_t count, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = draw(random);
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

std::vector<float> decoded(const Codec& codec, const std::vector<std::byte>& bytes, size_t count) {
  std::vector<float> values(count);
  codec.decode(bytes.data(), values.data(), count);
  return values;
}

std::vector<float> sum(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> out(a);
  for (size_t i = 0; i < out.size(); ++i) out[i] += b[i];
  return out;
}

}  // namespace

TEST("what is encoded is the value plus what was lost before, and the rest is kept") {
  for (const Wire wire : kWires) {
    const Codec& codec = codec_for(wire);
    for (const size_t count : kCounts) {
      const auto values = normal(count, 1), before = normal(count, 2, 0.1f);
      const auto wanted = sum(values, before);
      std::vector<std::byte> out(codec.wire_bytes(count)), expected(out);
      std::vector<float> after(count, 7);
      encode_with_residual(codec, values.data(), {before.data(), after.data()}, out.data(), count);
      codec.encode(wanted.data(), expected.data(), count);
      CHECK(out == expected, name_of(wire), " ", count);
      const auto got = decoded(codec, out, count);
      for (size_t i = 0; i < count; ++i) {
        CHECK(after[i] == wanted[i] - got[i], name_of(wire), " ", count, " at ", i);
      }
      // In place gives the same.
      std::vector<float> kept(before);
      encode_with_residual(codec, values.data(), {kept.data(), kept.data()}, out.data(), count);
      CHECK(same_bits(kept, after) && out == expected, name_of(wire), " ", count);
    }
  }
}

TEST("over many steps all of a constant gradient arrives, however coarse the format") {
  const Codec& codec = codec_for(Wire::int4);
  const size_t count = 200;
  const auto values = normal(count, 3);
  std::vector<float> kept(count, 0), arrived(count, 0), without(count, 0);
  std::vector<std::byte> out(codec.wire_bytes(count));
  constexpr int kSteps = 200;
  for (int step = 0; step < kSteps; ++step) {
    encode_with_residual(codec, values.data(), {kept.data(), kept.data()}, out.data(), count);
    arrived = sum(arrived, decoded(codec, out, count));
    codec.encode(values.data(), out.data(), count);
    without = sum(without, decoded(codec, out, count));
  }
  double worst = 0, worst_without = 0;
  for (size_t i = 0; i < count; ++i) {
    worst = std::max(worst, std::fabs(arrived[i] / kSteps - double(values[i])));
    worst_without = std::max(worst_without, std::fabs(without[i] / kSteps - double(values[i])));
  }
  // At most one step's error, half of absmax / 7, spread over all steps.
  CHECK(worst < 0.01, worst);
  CHECK(worst_without > 0.1, worst_without);
}

TEST("values that are not finite travel, and leave the residual as it was") {
  constexpr float kBad[] = {std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()};
  for (const Wire wire : kWires) {
    const Codec& codec = codec_for(wire);
    for (const float bad : kBad) {
      const size_t count = 2 * kFeedbackElements + 300, at = kFeedbackElements + 5;
      auto values = normal(count, 4);
      const auto before = normal(count, 5, 0.1f);
      values[at] = bad;
      std::vector<float> after(count, 7);
      std::vector<std::byte> out(codec.wire_bytes(count));
      encode_with_residual(codec, values.data(), {before.data(), after.data()}, out.data(), count);
      const auto got = decoded(codec, out, count);
      CHECK(!std::isfinite(got[at]), name_of(wire));
      CHECK(after[at] == before[at], name_of(wire));
      for (size_t i = 0; i < count; ++i) {
        const bool delivered = std::isfinite(got[i]);
        CHECK(std::isfinite(after[i]), name_of(wire), " at ", i);
        CHECK(delivered || after[i] == before[i], name_of(wire), " at ", i);
        CHECK(i / codec.block == at / codec.block || delivered, name_of(wire), " at ", i);
      }
    }
  }
}

TEST("a sum that overflows leaves the residual as it was") {
  const Codec& codec = codec_for(Wire::int8);
  const float most = std::numeric_limits<float>::max();
  const std::vector<float> values(10, most), before(10, most / 4);
  std::vector<float> after(10, 7);
  std::vector<std::byte> out(codec.wire_bytes(10));
  encode_with_residual(codec, values.data(), {before.data(), after.data()}, out.data(), 10);
  CHECK(same_bits(after, before), after[0]);
}

TEST("the owner adds in rank order, feeds back once and holds what all others decode") {
  for (const Wire wire : kWires) {
    const Codec& codec = codec_for(wire);
    for (const size_t count : kCounts) {
      const auto own = normal(count, 10), other = normal(count, 11), third = normal(count, 12);
      const auto before = normal(count, 13, 0.1f);
      std::vector<std::byte> a(codec.wire_bytes(count)), c(a), out(a), expected(a);
      codec.encode(other.data(), a.data(), count);
      codec.encode(third.data(), c.data(), count);
      std::vector<float> target(own), after(count, 7), wanted(count);
      const std::byte* encoded[] = {a.data(), nullptr, c.data()};
      const float* plain[] = {nullptr, target.data(), nullptr};
      reduce_with_residual(codec, target.data(), encoded, plain, 3, count, 3,
                           {before.data(), after.data()}, out.data());
      plain[1] = own.data();
      codec.reduce(wanted.data(), encoded, plain, 3, count, 3);
      wanted = sum(wanted, before);
      codec.encode(wanted.data(), expected.data(), count);
      CHECK(out == expected, name_of(wire), " ", count);
      CHECK(same_bits(target, decoded(codec, out, count)), name_of(wire), " ", count);
      for (size_t i = 0; i < count; ++i) {
        CHECK(after[i] == wanted[i] - target[i], name_of(wire), " ", count, " at ", i);
      }
    }
  }
}

TEST("without residuals only the mean is encoded") {
  const Codec& codec = codec_for(Wire::int8);
  const size_t count = kFeedbackElements + 11;
  const auto own = normal(count, 20);
  std::vector<float> target(own), wanted(count);
  std::vector<std::byte> out(codec.wire_bytes(count)), expected(out);
  const std::byte* encoded[] = {nullptr};
  const float* plain[] = {target.data()};
  reduce_with_residual(codec, target.data(), encoded, plain, 1, count, 1, {}, out.data());
  codec.encode(own.data(), expected.data(), count);
  CHECK(out == expected, "");
  CHECK(same_bits(target, decoded(codec, out, count)), "");
}

TEST("encoding with a residual has the same bits at every CPU level, NaN and Inf included") {
  for (const Wire wire : kWires) {
    for (const size_t count : kCounts) {
      auto values = normal(count, 11);
      const auto before = normal(count, 12, 0.1f);
      for (size_t i = 5; i < count; i += 611) values[i] = i % 2 ? NAN : INFINITY;
      const Codec& reference = codec_at(CpuLevel::scalar, wire);
      std::vector<std::byte> expected(reference.wire_bytes(count)), out(expected);
      std::vector<float> lost(count), got(count);
      reference.encode_with_residual(values.data(), before.data(), lost.data(), expected.data(),
                                     got.data(), count);
      CHECK(same_bits(got, decoded(reference, expected, count)), name_of(wire), " ", count);
      for (int i = 0; i <= static_cast<int>(hardware_cpu_level()); ++i) {
        const auto level = static_cast<CpuLevel>(i);
        std::vector<float> kept(before), target(values);
        codec_at(level, wire)
            .encode_with_residual(target.data(), kept.data(), kept.data(), out.data(),
                                  target.data(), count);
        CHECK(out == expected, name_of(wire), " ", count, " at ", name_of(level));
        CHECK(same_bits(kept, lost), name_of(wire), " ", count, " at ", name_of(level));
        CHECK(same_bits(target, got), name_of(wire), " ", count, " at ", name_of(level));
      }
    }
  }
}
