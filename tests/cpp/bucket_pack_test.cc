// SPDX-License-Identifier: MIT
// Packing: where pieces lie, and that they come back.
#include <cstring>
#include <random>

#include "bucket/pack.h"
#include "check.h"
#include "kernels/reduce.h"

using namespace pycomm;

TEST("each piece begins on a cache line of its own") {
  CHECK((offsets_of({}) == std::vector<size_t>{0}), "nothing takes no room");
  CHECK((offsets_of({1, 64, 65, 0, 3}) == std::vector<size_t>{0, 64, 128, 256, 256, 320}), "");
}

TEST("what is packed comes back, and nothing else is touched") {
  for (unsigned seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::vector<std::byte>> tensors(random() % 20);
    std::vector<size_t> bytes;
    for (auto& one : tensors) {
      one.resize(random() % 300);
      for (auto& value : one) value = static_cast<std::byte>(random());
      bytes.push_back(one.size());
    }
    const auto pieces_of = [](std::vector<std::vector<std::byte>>& all) {
      std::vector<Piece> pieces;
      for (auto& one : all) pieces.push_back({one.data(), one.size()});
      return pieces;
    };
    const auto offsets = offsets_of(bytes);
    std::vector<std::byte> flat(offsets.back(), std::byte{0xee});
    pack(flat.data(), pieces_of(tensors), offsets);
    for (size_t i = 0; i < tensors.size(); ++i) {
      for (size_t at = offsets[i] + bytes[i]; at < offsets[i + 1]; ++at) {
        CHECK(flat[at] == std::byte{0xee}, "a gap was written, seed ", seed);
      }
    }
    auto back = tensors;
    for (auto& one : back) std::fill(one.begin(), one.end(), std::byte{0});
    unpack(flat.data(), pieces_of(back), offsets);
    CHECK(back == tensors, "seed ", seed);
  }
}

TEST("packing and unpacking multiply on the way, also in place, as a pass of its own would") {
  constexpr double kFactor = 1.0 / 3;
  for (const DType dtype :
       {DType::float32, DType::float16, DType::bfloat16, DType::float64, DType::complex64}) {
    std::mt19937 random(1);
    std::vector<std::vector<std::byte>> tensors;
    std::vector<size_t> bytes;
    for (const size_t count : {1u, 17u, 0u, 300u}) {
      auto& one = tensors.emplace_back(count * size_of(dtype));
      for (auto& value : one) value = static_cast<std::byte>(random() % 64);
      bytes.push_back(one.size());
    }
    const auto offsets = offsets_of(bytes);
    std::vector<std::byte> expected(offsets.back()), flat(expected), back(expected);
    std::vector<Piece> apart, there;
    for (size_t i = 0; i < tensors.size(); ++i) {
      apart.push_back({tensors[i].data(), bytes[i]});
      there.push_back({flat.data() + offsets[i], bytes[i]});
    }
    pack(expected.data(), apart, offsets);
    scale(dtype, expected.data(), expected.data(), expected.size() / size_of(dtype), kFactor);
    pack(flat.data(), apart, offsets, PackFactor{dtype, kFactor});
    CHECK(flat == expected, name_of(dtype));
    pack(flat.data(), apart, offsets);
    pack(flat.data(), there, offsets, PackFactor{dtype, kFactor});
    CHECK(flat == expected, name_of(dtype), " in place");
    pack(flat.data(), apart, offsets);
    unpack(flat.data(), apart, offsets, PackFactor{dtype, kFactor});
    pack(back.data(), apart, offsets);
    CHECK(back == expected, name_of(dtype), " unpacked");
  }
}
