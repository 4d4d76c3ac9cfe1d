// SPDX-License-Identifier: MIT
// How fast wire formats are encoded, decoded and summed, beside a memcpy of the float32 bytes.
//
//   core_codecs [formats=bf16,fp16s,int8,int4] [levels=all] [sizes=262144,67108864] [rounds=41]
//
// Sizes are float32 bytes of the tensor. Operations: encode, decode, round_trip, add (one encoded
// source into a plain target, as the receiver of one chunk does), sum4 (four encoded sources into a
// target) and feedback (encode with a residual). One line for each: format, level, operation, size,
// median microseconds, GB/s of float32 bytes (of all sources for sum4), and the time as a multiple
// of a memcpy of as many bytes. pack and unpack are a bucket of tensors of 8 KiB: copied with
// format "fp32", scaled on the way with "thirds", else encoded for the rank that owns them and
// decoded again (EncodedBucket), by formats. A round times every contender once, so a slow moment
// of the machine hits all alike. One thread.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "bucket/encoded_bucket.h"
#include "bucket/pack.h"
#include "kernels/codec.h"
#include "kernels/cpu_kernels.h"
#include "timing.h"

using namespace pycomm;

namespace {

constexpr int kSources = 4;
// A sample takes about as long as copying this much.
constexpr size_t kBytesPerSample = 4u << 20;

struct Contender {
  std::string format, level, operation;
  int sources;
  std::function<void()> run;
  std::vector<double> seconds;
};

template <class T>
std::unique_ptr<T[], decltype(&std::free)> pages(size_t bytes) {
  constexpr size_t kPage = 4096;
  void* memory = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  std::memset(memory, 0, bytes);
  return {static_cast<T*>(memory), &std::free};
}

struct Buffers {
  size_t count;
  std::unique_ptr<float[], decltype(&std::free)> in, out, sum;
  std::vector<std::unique_ptr<std::byte[], decltype(&std::free)>> encoded;

  explicit Buffers(size_t bytes)
      : count(bytes / sizeof(float)),
        in(pages<float>(bytes)),
        out(pages<float>(bytes)),
        sum(pages<float>(bytes)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    // Repeated: drawing them takes longer than everything else.
    for (size_t i = 0; i < count; ++i) in[i] = i < 65536 ? normal(random) : in[i - 65536];
    for (int s = 0; s < kSources; ++s) encoded.push_back(pages<std::byte>(bytes));
  }
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

void add_codec(std::vector<Contender>& all, const Codec& codec, std::string_view level,
               Buffers& buffers) {
  float *in = buffers.in.get(), *out = buffers.out.get(), *sum = buffers.sum.get();
  std::byte* encoded = buffers.encoded[0].get();
  const size_t count = buffers.count;
  const auto add = [&](const char* operation, int sources, std::function<void()> run) {
    all.push_back(
        {std::string(name_of(codec.wire)), std::string(level), operation, sources, run, {}});
  };
  add("encode", 1, [=, &codec] { codec.encode(in, encoded, count); });
  add("decode", 1, [=, &codec] { codec.decode(encoded, out, count); });
  add("round_trip", 1, [=, &codec] { codec.round_trip(in, encoded, count); });
  add("add", 1, [=, &codec] {
    const std::byte* from[] = {nullptr, encoded};
    const float* plain[] = {sum, nullptr};
    codec.reduce(sum, from, plain, 2, count);
  });
  add("feedback", 1,
      [=, &codec] { codec.encode_with_residual(in, out, out, encoded, nullptr, count); });
  add("sum4", kSources, [=, &codec, &buffers] {
    const std::byte* from[kSources];
    const float* plain[kSources] = {};
    for (int s = 0; s < kSources; ++s) from[s] = buffers.encoded[s].get();
    codec.reduce(sum, from, plain, kSources, count);
  });
}

// Half of this bucket's elements are the other rank's, to be encoded for it; these are `bytes`.
struct EncodedTensors {
  EncodedBucket cut;
  std::vector<float> bucket;
  std::vector<std::byte> out;
  std::vector<const std::byte*> arrived{nullptr, nullptr};

  EncodedTensors(Wire wire, CpuLevel level, size_t bytes)
      : cut(wire, 0, 2, parts_of(bytes), 0, level), bucket(cut.elements(), 0.5f) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < bucket.size(); ++i)
      bucket[i] = i < 65536 ? normal(random) : bucket[i - 65536];
    out.resize(cut.bytes_for(1));
    arrived[1] = out.data();
  }
  static std::vector<BucketPart> parts_of(size_t bytes) {
    constexpr size_t kElements = 2 * 8192 / sizeof(float);
    std::vector<BucketPart> parts;
    for (size_t i = 0; i < 2 * bytes / sizeof(float) / kElements; ++i) {
      parts.push_back({i, i * kElements, i * kElements, kElements});
    }
    return parts;
  }
};

// Tensors lie apart, as those of a model do: one page in between.
struct PackedTensors {
  static constexpr size_t kTensorBytes = 8192, kApart = kTensorBytes + 4096;
  std::unique_ptr<std::byte[], decltype(&std::free)> memory;
  std::vector<Piece> pieces;
  std::vector<size_t> offsets;

  explicit PackedTensors(size_t bytes) : memory(pages<std::byte>(bytes / kTensorBytes * kApart)) {
    for (size_t i = 0; i < bytes / kTensorBytes; ++i) {
      pieces.push_back({memory.get() + i * kApart, kTensorBytes});
    }
    offsets = offsets_of(std::vector<size_t>(pieces.size(), kTensorBytes));
  }
};

void add_packing(std::vector<Contender>& all, const PackedTensors& tensors, Buffers& buffers) {
  auto* const flat = reinterpret_cast<std::byte*>(buffers.out.get());
  const auto add = [&](const char* format, const char* operation, std::function<void()> run) {
    all.push_back({format, "bucket", operation, 1, run, {}});
  };
  const PackFactor third{DType::float32, 1.0 / 3};
  add("fp32", "pack", [=, &tensors] { pack(flat, tensors.pieces, tensors.offsets); });
  add("fp32", "unpack", [=, &tensors] { unpack(flat, tensors.pieces, tensors.offsets); });
  add("thirds", "pack", [=, &tensors] { pack(flat, tensors.pieces, tensors.offsets, third); });
  add("thirds", "unpack", [=, &tensors] { unpack(flat, tensors.pieces, tensors.offsets, third); });
}

void add_encoded_packing(std::vector<Contender>& all, EncodedTensors& tensors, Wire wire,
                         CpuLevel level) {
  const auto add = [&](const char* operation, std::function<void()> run) {
    all.push_back({std::string(name_of(wire)), std::string(name_of(level)), operation, 1, run, {}});
  };
  add("pack", [&] { tensors.cut.encode(tensors.bucket.data(), {}, tensors.out.data()); });
  add("unpack", [&] { tensors.cut.decode(tensors.arrived.data(), tensors.bucket.data()); });
}

void measure(const std::vector<std::string>& formats, const std::vector<std::string>& levels,
             size_t bytes, int rounds) {
  Buffers buffers(bytes);
  std::vector<Contender> all;
  float *in = buffers.in.get(), *out = buffers.out.get();
  all.push_back({"fp32", "libc", "memcpy", 1, [=] { std::memcpy(out, in, bytes); }, {}});
  const PackedTensors tensors(bytes);
  add_packing(all, tensors, buffers);
  std::deque<EncodedTensors> encoded_tensors;
  for (const std::string& format : formats) {
    for (int i = 0; i <= static_cast<int>(hardware_cpu_level()); ++i) {
      const auto level = static_cast<CpuLevel>(i);
      const bool wanted = std::find(levels.begin(), levels.end(), name_of(level)) != levels.end();
      if (!levels.empty() && !wanted) continue;
      const Wire wire = wire_from(format);
      add_codec(all, codec_at(level, wire), name_of(level), buffers);
      add_encoded_packing(all, encoded_tensors.emplace_back(wire, level, bytes), wire, level);
    }
  }
  const int calls = static_cast<int>(std::max<size_t>(1, kBytesPerSample / bytes));
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < all.size(); ++i) {
      Contender& one = all[i];
      // What a format's other operations read must be its own.
      if (one.operation == "encode") {
        const Codec& codec = codec_for(wire_from(one.format));
        for (auto& encoded : buffers.encoded) codec.encode(in, encoded.get(), buffers.count);
      }
      if (one.operation == "add") std::memset(buffers.sum.get(), 0, bytes);
      one.seconds.push_back(once(one.run, calls));
    }
  }
  const double copy = median(all[0].seconds);
  for (const Contender& one : all) {
    const double seconds = median(one.seconds);
    std::printf("%-6s  %-6s  %-10s  %9zu  %10.2f  %6.2f  %5.2f\n", one.format.c_str(),
                one.level.c_str(), one.operation.c_str(), bytes, seconds * 1e6,
                static_cast<double>(bytes) * one.sources / seconds * 1e-9,
                seconds / (copy * one.sources));
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  std::string formats = "bf16,fp16s,int8,int4", levels, sizes = "262144,67108864";
  int rounds = 41;
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i], value = text.substr(text.find('=') + 1);
    if (text.starts_with("formats=")) formats = value;
    if (text.starts_with("levels=")) levels = value == "all" ? "" : value;
    if (text.starts_with("sizes=")) sizes = value;
    if (text.starts_with("rounds=")) rounds = std::atoi(value.c_str());
  }
  for (const std::string& size : split(sizes)) {
    const size_t bytes = std::strtoull(size.c_str(), nullptr, 0);
    measure(split(formats), split(levels), bytes, bytes > (8u << 20) ? rounds / 8 + 1 : rounds);
  }
}
