// SPDX-License-Identifier: MIT
// Packing and unpacking as a GPU does them, run by the CPU, against a loop over elements: all pairs
// of types, layouts with and without gaps, tensors at any address, and what the flags say.
#include <cmath>
#include <random>

#include "check.h"
#include "device_memory.h"
#include "kernels/codec.h"
#include "kernels/small_floats.h"
#include "kernels_data.h"

using namespace pycomm;
using device_memory::Aligned;
using device_memory::kernels;

namespace {

constexpr DType kFloats[] = {DType::float32, DType::float16, DType::bfloat16};

float value_at(DType dtype, const char* from) {
  float value;
  uint16_t code;
  if (dtype == DType::float32) {
    std::memcpy(&value, from, 4);
    return value;
  }
  std::memcpy(&code, from, 2);
  return dtype == DType::float16 ? widen<kFloat16, float>(uint32_t{code})
                                 : widen_bfloat16<float>(uint32_t{code});
}

void put(DType dtype, char* to, float value) {
  if (dtype == DType::float32) {
    value = value == value ? value : __builtin_bit_cast(float, kNanBits);
    std::memcpy(to, &value, 4);
    return;
  }
  const auto code =
      static_cast<uint16_t>(dtype == DType::float16 ? narrow<kFloat16, float, uint32_t>(value)
                                                    : narrow_bfloat16<float, uint32_t>(value));
  std::memcpy(to, &code, 2);
}

struct Options {
  double scale = 1;
  bool accumulate = false, checked = false;
};

// One element as pack() promises it; returns what it adds to the flags.
uint32_t move_element(DType from_type, const char* from, DType to_type, char* to,
                      const Options& options) {
  const float source = value_at(from_type, from);
  if (from_type == to_type && options.scale == 1 && !options.accumulate) {
    std::memcpy(to, from, size_of(to_type));
  } else {
    float value = source * static_cast<float>(options.scale);
    if (options.accumulate) value = value_at(to_type, to) + value;
    put(to_type, to, value);
  }
  if (!options.checked || std::isfinite(value_at(to_type, to))) return 0;
  return std::isfinite(source) ? kPackOverflowed : kPackWasNotFinite;
}

struct Layout {
  std::vector<size_t> begins, counts;
  size_t total = 0;
};

Layout random_layout(std::mt19937_64& random) {
  constexpr size_t kSizes[] = {0, 1, 2, 3, 7, 8, 9, 64, 255, 4095, 4096, 4097, 9001};
  Layout layout;
  const bool gaps = random() % 2;
  for (uint64_t n = 1 + random() % 9; n > 0; --n) {
    layout.begins.push_back(layout.total);
    layout.counts.push_back(kSizes[random() % std::size(kSizes)]);
    layout.total += layout.counts.back();
    if (gaps) layout.total = (layout.total + 15) / 16 * 16;
  }
  return layout;
}

struct Memory {
  Aligned memory;
  char* data;
  Memory(std::mt19937_64& random, DType dtype, size_t count, size_t shift)
      : memory((count + shift) * size_of(dtype)), data(memory.data() + shift * size_of(dtype)) {
    std::vector<char> bytes(count * size_of(dtype));
    kernels_data::fill(random, dtype, bytes);
    std::copy_n(bytes.data(), bytes.size(), data);
  }
};

void check_one(std::mt19937_64& random, DType tensor_dtype, DType bucket_dtype, bool to_bucket,
               const Options& options) {
  const Layout layout = random_layout(random);
  const size_t shift = random() % 3 == 0 ? random() % 8 : 0;
  Memory bucket(random, bucket_dtype, layout.total, shift);
  std::vector<Memory> tensors;
  std::vector<void*> addresses;
  for (const size_t count : layout.counts) {
    tensors.emplace_back(random, tensor_dtype, count, random() % 3 == 0 ? random() % 8 : 0);
  }
  for (auto& tensor : tensors) addresses.push_back(tensor.data);
  auto expected_bucket = bucket;
  auto expected_tensors = tensors;
  uint32_t expected_flags = 0, flags = 0;
  const auto offset = static_cast<size_t>(bucket.data - bucket.memory.data());
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (size_t e = 0; e < layout.counts[i]; ++e) {
      const auto past = static_cast<size_t>(tensors[i].data - tensors[i].memory.data());
      char* const in_tensor = expected_tensors[i].memory.data() + past + e * size_of(tensor_dtype);
      char* const in_bucket =
          expected_bucket.memory.data() + offset + (layout.begins[i] + e) * size_of(bucket_dtype);
      expected_flags |=
          to_bucket ? move_element(tensor_dtype, in_tensor, bucket_dtype, in_bucket, options)
                    : move_element(bucket_dtype, in_bucket, tensor_dtype, in_tensor, options);
    }
  }
  const auto tiles = pack_tiles(layout.begins, layout.counts);
  const PackTask task{tiles.data(),  tiles.size(),       addresses.data(),
                      tensor_dtype,  bucket.data,        bucket_dtype,
                      options.scale, options.accumulate, options.checked ? &flags : nullptr};
  CHECK((to_bucket ? kernels().pack(task, nullptr) : kernels().unpack(task, nullptr)) == kLaunched);
  const auto same = [](Memory& a, Memory& b) {
    return std::memcmp(a.memory.data(), b.memory.data(), a.memory.size()) == 0;
  };
  const auto what =
      check::join(name_of(tensor_dtype), to_bucket ? " into " : " from ", name_of(bucket_dtype),
                  " scale ", options.scale, " accumulate ", options.accumulate);
  CHECK(same(bucket, expected_bucket), what);
  for (size_t i = 0; i < tensors.size(); ++i) {
    CHECK(same(tensors[i], expected_tensors[i]), what, ", tensor ", i);
  }
  CHECK(flags == expected_flags, what, ": flags ", flags, ", expected ", expected_flags);
}

}  // namespace

TEST("every element goes where the layout says, with the bits of a loop") {
  std::mt19937_64 random(kernels_data::seed());
  for (const DType tensor : kFloats) {
    for (const DType bucket : kFloats) {
      for (int round = 0; round < 24; ++round) {
        const double scale = round % 3 == 0 ? 1 : round % 3 == 1 ? 0.25 : 1.0 / 3;
        const Options options{scale, round % 4 >= 2, round % 2 == 1};
        check_one(random, tensor, bucket, true, options);
        check_one(random, tensor, bucket, false, options);
      }
    }
  }
}

TEST("packing as bfloat16 gives the bits of the wire format of that name") {
  std::mt19937_64 random(kernels_data::seed());
  Memory tensor(random, DType::float32, 5000, 1);
  std::vector<uint16_t> packed(5000), encoded(5000);
  const size_t begin = 0, count = 5000;
  const auto tiles = pack_tiles({&begin, 1}, {&count, 1});
  void* const address = tensor.data;
  CHECK(kernels().pack({tiles.data(), tiles.size(), &address, DType::float32, packed.data(),
                        DType::bfloat16, 1.0 / 3},
                       nullptr) == kLaunched);
  std::vector<float> aligned(5000);
  std::memcpy(aligned.data(), tensor.data, 20000);
  codec_for(Wire::bf16)
      .encode(aligned.data(), reinterpret_cast<std::byte*>(encoded.data()), 5000, 1.0f / 3);
  CHECK(packed == encoded);
}

TEST("a flag tells a sum that overflowed from a gradient that was infinite") {
  const float big = 1e5f, infinite = INFINITY, fine = 1;
  for (const auto& [value, wanted] :
       {std::pair{big, kPackOverflowed}, std::pair{infinite, kPackWasNotFinite},
        std::pair{fine, uint32_t{0}}}) {
    std::vector<float> tensor(100, 1);
    tensor[77] = value;
    std::vector<uint16_t> bucket(100);
    const size_t begin = 0, count = 100;
    const auto tiles = pack_tiles({&begin, 1}, {&count, 1});
    void* const address = tensor.data();
    uint32_t flags = 0;
    CHECK(kernels().pack({tiles.data(), tiles.size(), &address, DType::float32, bucket.data(),
                          DType::float16, 1, false, &flags},
                         nullptr) == kLaunched);
    CHECK(flags == wanted, flags, " for ", value);
  }
}

TEST("float64 is moved as itself, and what has no kernel is refused") {
  std::vector<double> tensor(33, 1.0 / 3), bucket(33);
  const size_t begin = 0, count = 33;
  const auto tiles = pack_tiles({&begin, 1}, {&count, 1});
  void* const address = tensor.data();
  PackTask task{tiles.data(),  tiles.size(),   &address, DType::float64,
                bucket.data(), DType::float64, 0.1};
  CHECK(kernels().pack(task, nullptr) == kLaunched);
  CHECK(bucket == std::vector<double>(33, 1.0 / 3 * 0.1));
  task.bucket_dtype = DType::float32;
  CHECK(kernels().pack(task, nullptr) == kInvalidValue);
  CHECK(kernels().unpack(task, nullptr) == kInvalidValue);
  task.tensor_dtype = task.bucket_dtype = DType::int32;
  CHECK(kernels().pack(task, nullptr) == kInvalidValue);
  task.tensor_dtype = task.bucket_dtype = DType::float32;
  task.scale = INFINITY;
  CHECK(kernels().pack(task, nullptr) == kInvalidValue);
}

TEST("no tensors make no tiles, and no tile is larger than a block's work") {
  CHECK(pack_tiles({}, {}).empty());
  const size_t begins[] = {0, 10}, counts[] = {0, 3 * kPackTileElements + 1};
  const auto tiles = pack_tiles(begins, counts);
  CHECK(tiles.size() == 4 && tiles.back().count == 1 && tiles.back().tensor == 1);
  CHECK(tiles.back().in_bucket == 10 + 3 * kPackTileElements);
  CHECK(kernels().pack({}, nullptr) == kLaunched);
}
