// SPDX-License-Identifier: MIT
// Kernels that work alone, on the GPU and by the CPU on the same memory.
#include "gpu_memory.cuh"
#include "kernels/codec.h"

namespace gpu {
namespace {

// A call made twice, on the device's and on the host's copy of `memory`, which must agree after it.
void compare(Tally& tally, std::vector<std::unique_ptr<Twin>>& memory, const std::string& what,
             const std::function<int(bool gpu)>& call) {
  const int on_gpu = call(true), on_host = call(false);
  bool same = on_gpu == kLaunched && on_host == kLaunched && cudaDeviceSynchronize() == cudaSuccess;
  for (auto& twin : memory) same = twin->same() && same;
  tally.add(same, what);
}

void check_reduce(Tally& tally, std::mt19937& random, ReduceOp op, DType dtype, int sources,
                  int targets, size_t count) {
  const size_t size = size_of(dtype);
  const size_t shift = random() % 2 ? 0 : size * (random() % 5);
  std::vector<std::unique_ptr<Twin>> memory;
  for (int i = 0; i < sources + targets; ++i) {
    memory.push_back(std::make_unique<Twin>(count * size + 64));
    memory.back()->fill(random);
  }
  const auto what = "reduce " + std::string(name_of(op)) + " " + std::string(name_of(dtype)) + " " +
                    std::to_string(sources) + " -> " + std::to_string(targets) + ", " +
                    std::to_string(count);
  compare(tally, memory, what, [&](bool gpu) {
    std::vector<const void*> from;
    std::vector<void*> to;
    for (int i = 0; i < sources; ++i) from.push_back(memory[i]->on(gpu) + shift);
    for (int i = 0; i < targets; ++i) to.push_back(memory[sources + i]->on(gpu) + shift);
    const int divisor = op == ReduceOp::avg ? sources : 1;
    const ReduceTask task{op,    dtype,   to[0],         from.data(), sources,
                          count, divisor, to.data() + 1, targets - 1};
    return table(gpu).reduce(task, nullptr);
  });
}

void check_pack(Tally& tally, std::mt19937& random, DType tensor, DType bucket, bool pack) {
  const std::vector<size_t> counts = {1, 4096, 77, 0, 20000, 8, 12345};
  std::vector<size_t> begins;
  size_t total = random() % 8;
  const bool gaps = random() % 2;
  for (const size_t count : counts) {
    begins.push_back(total);
    total += count;
    if (gaps) total = (total + 15) / 16 * 16;
  }
  const auto tiles = pack_tiles(begins, counts);
  std::vector<std::unique_ptr<Twin>> memory;
  memory.push_back(std::make_unique<Twin>(total * size_of(bucket)));
  for (const size_t count : counts) {
    memory.push_back(std::make_unique<Twin>(count * size_of(tensor) + 16));
  }
  for (auto& twin : memory) twin->fill(random);
  memory.push_back(std::make_unique<Twin>(4));  // flags
  Twin device_tiles(tiles.size() * sizeof(PackTile)), tensors(counts.size() * sizeof(void*));
  std::memcpy(device_tiles.host(), tiles.data(), tiles.size() * sizeof(PackTile));
  device_tiles.to_device();
  const double scale = random() % 2 ? 1 : 1.0 / 3;
  const bool accumulate = random() % 2;
  const auto what = std::string(pack ? "pack " : "unpack ") + std::string(name_of(tensor)) + " " +
                    std::string(name_of(bucket));
  compare(tally, memory, what, [&](bool gpu) {
    auto** const addresses = reinterpret_cast<void**>(tensors.host());
    for (size_t i = 0; i < counts.size(); ++i) addresses[i] = memory[i + 1]->on(gpu);
    tensors.to_device();
    const PackTask task{reinterpret_cast<const PackTile*>(device_tiles.on(gpu)),
                        tiles.size(),
                        reinterpret_cast<void* const*>(tensors.on(gpu)),
                        tensor,
                        memory[0]->on(gpu),
                        bucket,
                        scale,
                        accumulate,
                        reinterpret_cast<uint32_t*>(memory.back()->on(gpu))};
    const int error = pack ? table(gpu).pack(task, nullptr) : table(gpu).unpack(task, nullptr);
    cudaDeviceSynchronize();  // `tensors` is written again
    return error;
  });
}

void check_codec(Tally& tally, std::mt19937& random, Wire wire, size_t count, bool ordinary) {
  std::vector<std::unique_ptr<Twin>> memory;
  const size_t bytes = codec_for(wire).wire_bytes(count);
  for (const size_t size : {4 * count, bytes, 4 * count, 4 * count}) {
    memory.push_back(std::make_unique<Twin>(size + 16));
    memory.back()->fill(random, ordinary);
  }
  const size_t shift = random() % 2 ? 0 : 4;
  const auto what = "wire " + std::string(name_of(wire)) + ", " + std::to_string(count);
  compare(tally, memory, "encode, " + what, [&](bool gpu) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(memory[i]->on(gpu) + shift); };
    return table(gpu).encode({wire, floats(0), memory[1]->on(gpu) + shift, count, 1, floats(2)},
                             nullptr);
  });
  compare(tally, memory, "sum_encoded, " + what, [&](bool gpu) {
    const void* const encoded[] = {memory[1]->on(gpu) + shift, nullptr};
    const float* const plain[] = {nullptr, reinterpret_cast<float*>(memory[2]->on(gpu) + shift)};
    return table(gpu).sum_encoded({wire, reinterpret_cast<float*>(memory[3]->on(gpu) + shift),
                                   encoded, plain, 2, count, 1, 3},
                                  nullptr);
  });
}

}  // namespace

void check_kernels(Tally& tally, unsigned seed) {
  std::mt19937 random(seed);
  for (int d = 0; d < kDTypeCount; ++d) {
    for (int o = 0; o < kReduceOpCount; ++o) {
      const auto dtype = static_cast<DType>(d);
      const auto op = static_cast<ReduceOp>(o);
      if (op == ReduceOp::premul_sum || !supports(op, dtype)) continue;
      for (const int sources : {1, 2, 8, 11}) {
        for (const size_t count : {1, 16, 1003, 40001}) {
          check_reduce(tally, random, op, dtype, sources, 1 + static_cast<int>(random() % 9),
                       count);
        }
      }
    }
  }
  constexpr DType kFloats[] = {DType::float32, DType::float16, DType::bfloat16};
  for (const DType tensor : kFloats) {
    for (const DType bucket : kFloats) {
      for (int round = 0; round < 8; ++round) check_pack(tally, random, tensor, bucket, round % 2);
    }
  }
  check_pack(tally, random, DType::float64, DType::float64, true);
  for (const Wire wire : {Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4}) {
    for (const size_t count : {1, 33, 256, 257, 40001}) {
      check_codec(tally, random, wire, count, false);
      check_codec(tally, random, wire, count, true);
    }
  }
}

}  // namespace gpu
