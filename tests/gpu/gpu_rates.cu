// SPDX-License-Identifier: MIT
// Rates of the kernels that work alone: bytes each must move over its time, beside the rate of a
// device-to-device copy, which reads and writes each byte once.
//
// Medians of events around single launches; memory rotates through more than the L2 cache holds.
// host_us is what a launch costs the calling thread.
#include <algorithm>
#include <chrono>

#include "gpu_memory.cuh"
#include "kernels/codec.h"

namespace gpu {
namespace {

constexpr size_t kRotation = size_t{1} << 30;

struct Arena {
  char* data = nullptr;
  size_t bytes;
  explicit Arena(size_t size) : bytes(size) {
    void* memory = nullptr;
    must(cudaMalloc(&memory, bytes), "cudaMalloc");
    must(cudaMemset(memory, 0x3c, bytes), "cudaMemset");
    data = static_cast<char*>(memory);
  }
  ~Arena() { cudaFree(data); }
  // Place `index` of `count` in round `round`, each `bytes_each`; rounds do not overlap until the
  // memory is used up.
  char* at(int round, int index, int count, size_t bytes_each) const {
    const size_t each = (bytes_each + 255) / 256 * 256, need = each * static_cast<size_t>(count);
    const size_t turns = std::max<size_t>(1, bytes / need);
    return data + static_cast<size_t>(round) % turns * need + static_cast<size_t>(index) * each;
  }
};

struct Row {
  std::string kernel;
  size_t bytes, moved;
  double us, host_us;
  std::string text(double copy_gbs) const {
    const double gbs = static_cast<double>(moved) / us / 1e3;
    char row[256];
    std::snprintf(row, sizeof row,
                  "  {\"kernel\": \"%s\", \"bytes\": %zu, \"moved\": %zu, \"us\": %.2f, "
                  "\"host_us\": %.2f, \"gbs\": %.0f, \"of_copy\": %.3f},\n",
                  kernel.c_str(), bytes, moved, us, host_us, gbs, gbs / copy_gbs);
    return row;
  }
};

double host_us(const std::function<void(int)>& launch) {
  constexpr int kTimes = 200;
  must(cudaDeviceSynchronize(), "synchronize");
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kTimes; ++i) launch(i);
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
  must(cudaDeviceSynchronize(), "synchronize");
  return took.count() / kTimes;
}

Row measured(std::string kernel, size_t bytes, size_t moved,
             const std::function<void(int)>& launch) {
  const double us = median_us(launch);
  // A small launch, so that the queue does not fill up.
  return {std::move(kernel), bytes, moved, us, bytes <= (size_t{1} << 20) ? host_us(launch) : 0};
}

void measure_reduce(const Arena& arena, size_t bytes, std::vector<Row>& rows) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const int sources : {2, 4, 8}) {
      for (const int targets : {1, sources}) {
        const int places = sources + (targets == 1 ? 1 : 0);  // or in place everywhere
        if (static_cast<size_t>(places) * bytes > arena.bytes) continue;
        rows.push_back(measured(
            "reduce " + std::string(name_of(dtype)) + " " + std::to_string(sources) + " to " +
                std::to_string(targets),
            bytes, bytes * static_cast<size_t>(sources + targets), [&](int round) {
              std::vector<const void*> from;
              std::vector<void*> to;
              for (int i = 0; i < sources; ++i) from.push_back(arena.at(round, i, places, bytes));
              for (int i = 0; i < targets; ++i) {
                to.push_back(arena.at(round, targets == 1 ? sources : i, places, bytes));
              }
              must(cuda_kernels().reduce({ReduceOp::sum, dtype, to[0], from.data(), sources,
                                          bytes / size_of(dtype), 1, to.data() + 1, targets - 1},
                                         nullptr),
                   "reduce");
            }));
      }
    }
  }
}

// A transformer's gradients: for each 100 parts 1 of bias and norm and two matrices.
std::vector<size_t> tensor_counts(size_t elements) {
  std::vector<size_t> counts;
  for (size_t left = elements; left > 0; left -= counts.back()) {
    const size_t wanted = counts.size() % 3 == 2 ? 1024 : elements / 100;
    counts.push_back(std::min(left, std::max<size_t>(wanted, 1)));
  }
  return counts;
}

void measure_pack(const Arena& arena, size_t bytes, std::vector<Row>& rows) {
  const auto counts = tensor_counts(bytes / 4);
  std::vector<size_t> begins;
  size_t total = 0;
  for (const size_t count : counts) {
    begins.push_back(total);
    total += (count + 15) / 16 * 16;
  }
  const auto tiles = pack_tiles(begins, counts);
  Twin device_tiles(tiles.size() * sizeof(PackTile)), flags(4);
  std::memcpy(device_tiles.host(), tiles.data(), tiles.size() * sizeof(PackTile));
  device_tiles.to_device();
  const int turns = static_cast<int>(std::max<size_t>(1, arena.bytes / (8 * total)));
  std::vector<std::unique_ptr<Twin>> tables;  // of addresses, one a turn
  for (int turn = 0; turn < turns; ++turn) {
    tables.push_back(std::make_unique<Twin>(counts.size() * sizeof(void*)));
    auto** const addresses = reinterpret_cast<void**>(tables.back()->host());
    for (size_t i = 0; i < counts.size(); ++i) {
      addresses[i] = arena.at(turn, 0, 2, 4 * total) + 4 * begins[i];
    }
    tables.back()->to_device();
  }
  struct Kind {
    const char* name;
    DType bucket;
    bool pack, accumulate;
    size_t moved_per_element;
  };
  constexpr Kind kKinds[] = {{"pack to float32", DType::float32, true, false, 8},
                             {"pack to float16", DType::float16, true, false, 6},
                             {"pack to bfloat16", DType::bfloat16, true, false, 6},
                             {"unpack float16", DType::float16, false, false, 6},
                             {"unpack float16 and add", DType::float16, false, true, 10}};
  for (const Kind& kind : kKinds) {
    const std::string name =
        std::string(kind.name) + ", " + std::to_string(counts.size()) + " tensors";
    rows.push_back(measured(name, bytes, bytes / 4 * kind.moved_per_element, [&](int round) {
      const int turn = round % turns;
      const PackTask task{reinterpret_cast<const PackTile*>(device_tiles.device()),
                          tiles.size(),
                          reinterpret_cast<void* const*>(tables[turn]->device()),
                          DType::float32,
                          arena.at(turn, 1, 2, 4 * total),
                          kind.bucket,
                          0.5,
                          kind.accumulate,
                          reinterpret_cast<uint32_t*>(flags.device())};
      must(kind.pack ? cuda_kernels().pack(task, nullptr) : cuda_kernels().unpack(task, nullptr),
           kind.name);
    }));
  }
}

void measure_codec(const Arena& arena, size_t bytes, std::vector<Row>& rows) {
  for (const Wire wire : {Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4}) {
    const size_t encoded = codec_for(wire).wire_bytes(bytes / 4);
    const auto floats = [&](int round, int i) {
      return reinterpret_cast<float*>(arena.at(round, i, 2, bytes));
    };
    const std::string name(name_of(wire));
    rows.push_back(measured("encode " + name, bytes, bytes + encoded, [&](int round) {
      must(cuda_kernels().encode({wire, floats(round, 0), floats(round, 1), bytes / 4}, nullptr),
           "encode");
    }));
    rows.push_back(measured("decode " + name, bytes, bytes + encoded, [&](int round) {
      const void* const from = floats(round, 1);
      must(cuda_kernels().sum_encoded({wire, floats(round, 0), &from, nullptr, 1, bytes / 4},
                                      nullptr),
           "sum_encoded");
    }));
  }
}

}  // namespace

double median_us(const std::function<void(int)>& launch, int rounds) {
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin), "event");
  must(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int round = 0; round < rounds + 5; ++round) {
    must(cudaEventRecord(begin), "record");
    launch(round);
    must(cudaEventRecord(end), "record");
    must(cudaEventSynchronize(end), "synchronize");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (round >= 5) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return 1e3 * times[times.size() / 2];
}

double measure_copy_gbs() {
  const Arena arena(kRotation);
  constexpr size_t kBytes = size_t{128} << 20;
  const double us = median_us([&](int round) {
    must(cudaMemcpyAsync(arena.at(round, 1, 2, kBytes), arena.at(round, 0, 2, kBytes), kBytes,
                         cudaMemcpyDeviceToDevice),
         "copy");
  });
  return 2.0 * kBytes / us / 1e3;
}

std::string measure_kernels(double copy_gbs) {
  const Arena arena(2 * kRotation);
  std::vector<Row> rows;
  for (const size_t mib : {1, 25, 64, 128}) {
    measure_reduce(arena, mib << 20, rows);
    measure_pack(arena, mib << 20, rows);
    measure_codec(arena, mib << 20, rows);
  }
  std::string text;
  for (const Row& row : rows) text += row.text(copy_gbs);
  return text;
}

}  // namespace gpu
