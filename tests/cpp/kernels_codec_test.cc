// SPDX-License-Identifier: MIT
// Every wire format at every CPU level against the reference, byte for byte, and what each format
// promises.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "check.h"
#include "kernels/codec.h"
#include "kernels/cpu_kernels.h"
#include "kernels_codec_reference.h"

using namespace pycomm;
using codec_reference::Bytes;
using codec_reference::Floats;
using codec_reference::Kind;
using codec_reference::kKinds;

namespace {

constexpr Wire kWires[] = {Wire::fp32, Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4};
constexpr Wire kNarrow[] = {Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4};
constexpr size_t kCounts[] = {0,  1,  2,   3,   7,   31,  32,  33,  63,   64,  65,
                              95, 96, 127, 255, 256, 257, 511, 513, 1000, 4099};
constexpr char kGuard = 0x5a;

template <class Body>
void at_every_level(const Body& body) {
  for (int i = 0; i <= static_cast<int>(hardware_cpu_level()); ++i) body(static_cast<CpuLevel>(i));
}

std::byte* bytes_at(Bytes& bytes, size_t at) {
  return reinterpret_cast<std::byte*>(bytes.data() + at);
}

Bytes encode(const Codec& codec, const Floats& in, float scale = 1) {
  Bytes out(codec.wire_bytes(in.size()));
  codec.encode(in.data(), bytes_at(out, 0), in.size(), scale);
  return out;
}
Floats decode(const Codec& codec, Bytes bytes, size_t count, float scale = 1) {
  Floats out(count);
  codec.decode(bytes_at(bytes, 0), out.data(), count, scale);
  return out;
}
Floats through(Wire wire, const Floats& in) {
  const Codec& codec = codec_for(wire);
  return decode(codec, encode(codec, in), in.size());
}

// Bit for bit, but for the payload of a NaN.
bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : __builtin_memcmp(&a, &b, sizeof a) == 0;
}
bool same_bits(const Floats& a, const Floats& b) {
  const auto bits = [](float x) { return __builtin_bit_cast(uint32_t, x); };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](float x, float y) { return bits(x) == bits(y); });
}

float absmax(const Floats& values, size_t from, size_t end) {
  float largest = 0;
  for (size_t i = from; i < end; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// How far decode(encode(x)) may be from a finite x in a finite block.
double bound(Wire wire, double x, double largest) {
  const double step = std::ldexp(1.0, -149);  // what float32 itself can resolve
  switch (wire) {
    case Wire::bf16:
      return std::max(std::fabs(x) * std::ldexp(1.0, -8), std::ldexp(1.0, -134));
    case Wire::fp16s:  // the largest 2^-12 of the range is held below 2^128
      return std::max({std::fabs(x) * std::ldexp(1.0, largest > 3.4e38 ? -10 : -11),
                       largest * std::ldexp(1.0, -38), step});
    case Wire::int8:
      return largest / 127 / 2 * (1 + std::ldexp(1.0, -14)) + step;
    case Wire::int4:
      return largest / 7 / 2 * (1 + std::ldexp(1.0, -14)) + step;
    default:
      return 0;
  }
}

}  // namespace

TEST("encode gives the bytes of the reference at every level, wherever the memory lies") {
  std::mt19937_64 random(kernels_data::seed());
  for (Wire wire : kWires) {
    for (Kind kind : kKinds) {
      for (size_t count : kCounts) {
        const Floats in = codec_reference::values(random, kind, count);
        for (float scale : {1.0f, 0.25f, 1.0f / 3}) {
          const Bytes expected = codec_reference::encode(wire, in, scale);
          at_every_level([&](CpuLevel level) {
            const Codec& codec = codec_at(level, wire);
            CHECK(codec.wire_bytes(count) == expected.size(), name_of(wire), count);
            const size_t shift = 1 + count % 3;
            Bytes source(in.size() * 4 + shift);
            if (count) std::memcpy(source.data() + shift, in.data(), count * 4);
            Bytes out(shift + expected.size() + 1, kGuard);
            codec.encode(reinterpret_cast<const float*>(source.data() + shift),
                         bytes_at(out, shift), count, scale);
            CHECK(out[shift - 1] == kGuard && out.back() == kGuard, "out of bounds");
            const auto at = std::mismatch(expected.begin(), expected.end(), out.begin() + shift);
            CHECK(at.first == expected.end(), name_of(wire), " of ", count, " elements, kind ",
                  static_cast<int>(kind), ", scale ", scale, " at ", name_of(level), ": byte ",
                  at.first - expected.begin());
          });
        }
      }
    }
  }
}

TEST("decode of any bytes is the same at every level, and the value the format says") {
  std::mt19937_64 random(kernels_data::seed());
  for (Wire wire : kWires) {
    for (size_t count : kCounts) {
      Bytes bytes(codec_for(wire).wire_bytes(count) + 1);
      const bool encoded = random() % 2;
      if (encoded) {
        bytes = encode(codec_for(wire), codec_reference::values(random, Kind::hostile, count));
      } else {
        std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
      }
      const Floats expected = codec_reference::decode(wire, bytes, count);
      for (float scale : {1.0f, 0.5f, 1.0f / 3}) {
        Floats first;
        at_every_level([&](CpuLevel level) {
          Floats out(count + 1, 123.0f);
          codec_at(level, wire).decode(bytes_at(bytes, 0), out.data(), count, scale);
          CHECK(out.back() == 123.0f, "out of bounds");
          for (size_t i = 0; i < count; ++i) {
            CHECK(same(out[i], expected[i] * scale), name_of(wire), " element ", i, " of ", count,
                  " is ", out[i], ", expected ", expected[i] * scale, " at ", name_of(level));
          }
          if (level == CpuLevel::scalar) first = out;
          // Of two NaN, a scale's and an element's, either may come through; no encoder writes
          // both.
          CHECK(!encoded || same_bits(first, out), name_of(wire), " at ", name_of(level));
        });
      }
    }
  }
}

TEST("a round trip leaves the encoding's bytes, and what they decode to") {
  std::mt19937_64 random(kernels_data::seed());
  for (Wire wire : kWires) {
    for (Kind kind : kKinds) {
      for (size_t count : kCounts) {
        const Floats in = codec_reference::values(random, kind, count);
        at_every_level([&](CpuLevel level) {
          const Codec& codec = codec_at(level, wire);
          Floats inout = in;
          Bytes out(codec.wire_bytes(count));
          codec.round_trip(inout.data(), bytes_at(out, 0), count);
          CHECK(out == encode(codec, in), name_of(wire), " of ", count);
          CHECK(same_bits(inout, decode(codec, out, count)), name_of(wire), " of ", count);
        });
      }
    }
  }
}

TEST("an encoding cut at multiples of the block is the encoding of the whole") {
  std::mt19937_64 random(kernels_data::seed());
  constexpr size_t kCount = 5 * 256 + 37;
  for (Wire wire : kWires) {
    const Codec& codec = codec_for(wire);
    const Floats in = codec_reference::values(random, Kind::hostile, kCount);
    const Bytes whole = encode(codec, in);
    for (size_t cut : {codec.block, 3 * codec.block}) {
      Bytes pieces;
      for (size_t at = 0; at < kCount; at += cut) {
        CHECK(pieces.size() == codec.wire_bytes(at), name_of(wire), " at ", at);
        const size_t n = std::min(cut, kCount - at);
        const Bytes piece = encode(codec, Floats(in.begin() + at, in.begin() + at + n));
        pieces.insert(pieces.end(), piece.begin(), piece.end());
      }
      CHECK(pieces == whole, name_of(wire), " cut every ", cut);
    }
  }
}

TEST("encoding what was decoded loses nothing more") {
  // An integer format's scale may move in its last bit. Where it is subnormal, its steps are too
  // coarse for this.
  std::mt19937_64 random(kernels_data::seed());
  for (Wire wire : kWires) {
    for (Kind kind : kKinds) {
      const bool integers = wire == Wire::int8 || wire == Wire::int4;
      if (integers && kind == Kind::tiny) continue;
      for (int repeat = 0; repeat < 20; ++repeat) {
        const Floats once = through(wire, codec_reference::values(random, kind, 1000));
        const Floats twice = through(wire, once);
        for (size_t i = 0; i < once.size(); ++i) {
          const float drift = integers ? std::fabs(once[i]) * 0x1p-22f : 0;
          CHECK(same(once[i], twice[i]) || std::fabs(once[i] - twice[i]) <= drift, name_of(wire),
                " kind ", static_cast<int>(kind), ": ", once[i], " became ", twice[i]);
        }
      }
    }
  }
}

TEST("finite values stay within the format's error bound, whatever their size") {
  std::mt19937_64 random(kernels_data::seed());
  for (Wire wire : kNarrow) {
    const size_t block = codec_for(wire).block;
    for (Kind kind : {Kind::gaussian, Kind::wide, Kind::tiny, Kind::huge, Kind::zeros}) {
      if (wire == Wire::bf16 && kind == Kind::huge) continue;  // may round to Inf
      for (int repeat = 0; repeat < 20; ++repeat) {
        const Floats in = codec_reference::values(random, kind, 1000);
        const Floats out = through(wire, in);
        for (size_t i = 0; i < in.size(); ++i) {
          const size_t from = i / block * block;
          const float largest = absmax(in, from, std::min(in.size(), from + block));
          const double error = std::fabs(static_cast<double>(in[i]) - out[i]);
          CHECK(error <= bound(wire, in[i], largest), name_of(wire), " of ", in[i], " is ", out[i],
                " in a block up to ", largest);
        }
      }
    }
  }
}

TEST("values over 65504 survive fp16s, next to small ones too") {
  Floats in(256, 1.0f);
  in[3] = 70000.0f, in[5] = -3.0e38f, in[200] = 65520.0f;
  const Floats out = through(Wire::fp16s, in);
  CHECK(std::fabs(out[5] + 3.0e38f) < 3.0e38f / 2048, out[5]);
  in[5] = 1.0f;
  const Floats gentle = through(Wire::fp16s, in);
  CHECK(std::fabs(gentle[3] - 70000.0f) <= 70000.0f / 2048, gentle[3]);
  CHECK(gentle[200] == 65536.0f || gentle[200] == 65504.0f, gentle[200]);
  CHECK(gentle[0] == 1.0f, gentle[0]);
}

TEST("the largest float32 stays finite in the scaled formats") {
  const float most = 3.4028235e38f;
  for (Wire wire : {Wire::fp16s, Wire::int8, Wire::int4}) {
    for (float v : through(wire, Floats(300, -most))) {
      CHECK(std::isfinite(v) && v < -0.99f * most, name_of(wire), " gave ", v);
    }
  }
  CHECK(std::isinf(through(Wire::bf16, {most})[0]), "bfloat16 rounds it to Inf");
}

TEST("subnormals are not flushed") {
  const float smallest = 1e-45f;
  for (Wire wire : kWires) {
    if (wire == Wire::bf16) continue;  // its own smallest is 2^-133
    CHECK(through(wire, {smallest})[0] == smallest, name_of(wire));
    CHECK(through(wire, Floats(256, -smallest))[255] == -smallest, name_of(wire));
  }
  const float coarse = std::ldexp(1.0f, -133);
  CHECK(through(Wire::bf16, {coarse})[0] == coarse, "2^-133 in bf16");
}

TEST("minus zero keeps its sign where the format has one") {
  for (Wire wire : {Wire::fp32, Wire::bf16, Wire::fp16s}) {
    CHECK(std::signbit(through(wire, {-0.0f})[0]), name_of(wire));
    CHECK(std::signbit(through(wire, {1.0f, -0.0f})[1]), name_of(wire));
  }
  CHECK(!std::signbit(through(Wire::int8, {-0.0f})[0]), "int8 has one zero");
}

TEST("NaN and Inf stay in their block") {
  for (Wire wire : kNarrow) {
    const size_t block = codec_for(wire).block;
    for (float special : {NAN, INFINITY, -INFINITY}) {
      for (size_t at : {size_t{0}, size_t{255}, size_t{256}, size_t{599}}) {
        Floats in(600, 1.0f);
        in[at] = special;
        const Floats out = through(wire, in);
        const bool whole = wire == Wire::int8 || wire == Wire::int4;
        for (size_t i = 0; i < in.size(); ++i) {
          const bool hit = whole ? i / block == at / block : i == at;
          const float expected = !hit ? 1.0f : whole ? NAN : special;
          CHECK(same(out[i], expected), name_of(wire), " element ", i, " is ", out[i]);
        }
      }
    }
  }
}

TEST("a name is a format, and anything else is refused with the choices") {
  for (Wire wire : kWires) CHECK(wire_from(name_of(wire)) == wire, name_of(wire));
  for (const char* wrong : {"", "fp16", "INT8", "auto"}) {
    bool refused = false;
    try {
      wire_from(wrong);
    } catch (const UsageError& error) {
      refused = std::string(error.what()).find("fp16s") != std::string::npos;
    }
    CHECK(refused, wrong);
  }
}
