// SPDX-License-Identifier: MIT
// The wire formats as a GPU handles them, run by the CPU: the bytes of the CPU's codecs and their
// sums, for ordinary and extreme values, all counts, odd addresses, and any number of blocks.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "device_memory.h"
#include "kernels/codec.h"
#include "kernels/codec_launch.h"
#include "kernels/host_env.h"
#include "kernels_codec_reference.h"
#include "kernels_data.h"

using namespace pycomm;
using device_memory::Aligned;
using device_memory::kernels;

namespace {

constexpr Wire kNarrow[] = {Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4};
constexpr size_t kCounts[] = {0,  1,   2,   3,   31,  32,  33,  63,  64,   65,
                              95, 127, 255, 256, 257, 320, 511, 513, 1000, 4099};

struct GridLaunch {
  size_t blocks;
  template <class Body>
  int operator()(const Body& body, size_t, void*) const {
    for (size_t block = blocks; block-- > 0;) body(HostEnv(block, blocks, 64));
    return kLaunched;
  }
};

// Floats that begin `shift` bytes behind a 16-byte boundary.
struct FloatsAt {
  Aligned memory;
  size_t shift, count;
  FloatsAt(const std::vector<float>& values, size_t shift)
      : memory(values.size() * 4 + shift), shift(shift), count(values.size()) {
    if (count) std::memcpy(memory.data() + shift, values.data(), count * 4);
  }
  float* data() { return reinterpret_cast<float*>(memory.data() + shift); }
  std::vector<float> values() {
    std::vector<float> result(count);
    if (count) std::memcpy(result.data(), memory.data() + shift, count * 4);
    return result;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

void check_encode(Wire wire, const std::vector<float>& in, float scale, size_t shift,
                  size_t out_shift, size_t blocks) {
  const Codec& codec = codec_for(wire);
  const size_t bytes = codec.wire_bytes(in.size());
  std::vector<char> expected(bytes);
  codec.encode(in.data(), reinterpret_cast<std::byte*>(expected.data()), in.size(), scale);
  std::vector<float> expected_back(in.size());
  codec.decode(reinterpret_cast<const std::byte*>(expected.data()), expected_back.data(),
               in.size());
  for (float& v : expected_back) v = v == v ? v : __builtin_bit_cast(float, kNanBits);
  FloatsAt values(in, shift), back(std::vector<float>(in.size()), 4 * (shift / 8));
  Aligned out(bytes + out_shift);
  const EncodeTask task{wire,      values.data(), out.data() + out_shift,
                        in.size(), scale,         shift % 3 == 0 ? values.data() : back.data()};
  CHECK(launch_encode(task, GridLaunch{blocks}, nullptr) == kLaunched);
  const auto what = check::join(name_of(wire), "[", in.size(), "] scale ", scale, " shift ", shift,
                                " to ", out_shift, ", ", blocks, " blocks");
  CHECK(std::equal(expected.begin(), expected.end(), out.data() + out_shift), what);
  CHECK(out.is_untouched(out.data() + out_shift + bytes), what, ": written past the end");
  CHECK(same_bits(shift % 3 == 0 ? values.values() : back.values(), expected_back), what);
}

void check_sum(std::mt19937_64& random, Wire wire, size_t count, int sources, int divisor) {
  const Codec& codec = codec_for(wire);
  std::vector<FloatsAt> plain_memory;
  std::vector<Aligned> encoded_memory;
  std::vector<const void*> encoded;
  std::vector<const std::byte*> encoded_bytes;
  std::vector<const float*> plain;
  std::vector<std::vector<float>> inputs;
  for (int s = 0; s < sources; ++s) {
    std::vector<char> bytes(count * 4);
    kernels_data::fill(random, DType::float32, bytes);
    inputs.emplace_back(count);
    if (count) std::memcpy(inputs.back().data(), bytes.data(), bytes.size());
    const size_t shift = random() % 2 ? 0 : 4 * (random() % 4);
    plain_memory.emplace_back(inputs.back(), shift);
    encoded_memory.emplace_back(codec.wire_bytes(count) + 16);
  }
  for (size_t s = 0; s < inputs.size(); ++s) {
    auto* const at = reinterpret_cast<std::byte*>(encoded_memory[s].data() + random() % 5);
    codec.encode(inputs[s].data(), at, count);
    const bool is_encoded = random() % 3 > 0;
    encoded.push_back(is_encoded ? at : nullptr);
    encoded_bytes.push_back(is_encoded ? at : nullptr);
    plain.push_back(is_encoded ? nullptr : plain_memory[s].data());
  }
  std::vector<float> expected(count);
  codec.reduce(expected.data(), encoded_bytes.data(), plain.data(), sources, count, divisor);
  FloatsAt target(std::vector<float>(count), 4 * (random() % 4));
  float* to = target.data();
  if (plain[0]) to = plain_memory[0].data();  // the target may be a plain source
  SumEncodedTask task{wire, to, encoded.data(), plain.data(), sources, count, 1, divisor};
  CHECK(launch_sum_encoded(task, GridLaunch{1 + random() % 4}, nullptr) == kLaunched);
  CHECK(same_bits(plain[0] ? plain_memory[0].values() : target.values(), expected), name_of(wire),
        "[", count, "] of ", sources, " over ", divisor);
}

}  // namespace

TEST("encodings have the bytes of the CPU's codecs, and decode to what those decode to") {
  std::mt19937_64 random(kernels_data::seed());
  for (const Wire wire : kNarrow) {
    for (const size_t count : kCounts) {
      for (const auto kind : codec_reference::kKinds) {
        const auto in = codec_reference::values(random, kind, count);
        const float scale = random() % 2 ? 1.0f : 1.0f / 3;
        check_encode(wire, in, scale, random() % 2 ? 0 : 4 * (random() % 4),
                     random() % 2 ? 0 : random() % 9, 1 + random() % 5);
      }
    }
  }
}

TEST("sums out of encodings have the CPU's bits") {
  std::mt19937_64 random(kernels_data::seed());
  for (const Wire wire : kNarrow) {
    for (const size_t count : kCounts) {
      for (int sources : {1, 2, 3, 8}) {
        for (int divisor : {1, 2, 3}) check_sum(random, wire, count, sources, divisor);
      }
    }
  }
}

TEST("decoding with a factor is a sum of one source") {
  std::mt19937_64 random(kernels_data::seed());
  std::vector<char> bytes(4 * 777);
  kernels_data::fill(random, DType::float32, bytes);
  std::vector<float> in(777), expected(777), got(777);
  std::memcpy(in.data(), bytes.data(), bytes.size());
  for (const Wire wire : kNarrow) {
    const Codec& codec = codec_for(wire);
    std::vector<std::byte> encoded(codec.wire_bytes(777));
    codec.encode(in.data(), encoded.data(), 777);
    codec.decode(encoded.data(), expected.data(), 777, 0.3f);
    const void* const source = encoded.data();
    SumEncodedTask task{wire, got.data(), &source, nullptr, 1, 777, 0.3f};
    CHECK(kernels().sum_encoded(task, nullptr) == kLaunched);
    for (size_t i = 0; i < 777; ++i) {
      CHECK(std::isnan(expected[i]) ? std::isnan(got[i]) : expected[i] == got[i], name_of(wire));
    }
  }
}

TEST("what the codecs of a device cannot do is refused") {
  float x[8] = {};
  const void* const source = x;
  CHECK(kernels().encode({Wire::fp32, x, x, 8}, nullptr) == kInvalidValue);
  CHECK(kernels().encode({Wire::int8, x, x, 8, INFINITY}, nullptr) == kInvalidValue);
  CHECK(kernels().sum_encoded({Wire::int8, x, &source, nullptr, 0, 8}, nullptr) == kInvalidValue);
  CHECK(kernels().sum_encoded({Wire::int8, x, &source, nullptr, 9, 8}, nullptr) == kInvalidValue);
  CHECK(kernels().sum_encoded({Wire::int8, x, &source, nullptr, 1, 8, 0.5f, 2}, nullptr) ==
        kInvalidValue);
}
