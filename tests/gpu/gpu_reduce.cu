// SPDX-License-Identifier: MIT
// The k-way reduce on a real GPU: every dtype and op bit for bit against the CPU's reduce(), then
// its bandwidth beside a device-to-device copy of as many bytes. Exits with 77 where there is no
// device.
//
// Times are medians of events around single launches; sources rotate through more memory than the
// L2 cache holds. Bytes counted: k reads and one write of the target's size; a copy reads and
// writes once.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "kernels/device_kernels.h"

using namespace pycomm;

namespace {

void must(int error, const char* what) {
  if (error == 0) return;
  std::fprintf(stderr, "%s: %s\n", what, cuda_error_text(error));
  std::exit(1);
}

struct DeviceBytes {
  explicit DeviceBytes(size_t bytes) { must(cudaMalloc(&data, bytes), "cudaMalloc"); }
  ~DeviceBytes() { cudaFree(data); }
  void* data = nullptr;
};

// Random bits, so NaN, infinities and subnormals are among them.
std::vector<unsigned char> random_bytes(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<unsigned char> bytes(count);
  for (auto& byte : bytes) byte = static_cast<unsigned char>(generator());
  return bytes;
}

bool same_bits(ReduceOp op, DType dtype, int sources, size_t count, unsigned seed) {
  const size_t bytes = count * size_of(dtype);
  std::vector<std::vector<unsigned char>> host;
  std::vector<std::unique_ptr<DeviceBytes>> device;
  std::vector<const void*> host_sources, device_sources;
  for (int i = 0; i < sources; ++i) {
    host.push_back(random_bytes(bytes, seed + static_cast<unsigned>(i)));
    device.push_back(std::make_unique<DeviceBytes>(bytes));
    must(cudaMemcpy(device.back()->data, host.back().data(), bytes, cudaMemcpyHostToDevice),
         "copy");
    host_sources.push_back(host.back().data());
    device_sources.push_back(device.back()->data);
  }
  std::vector<unsigned char> expected(bytes), got(bytes, 0xa5);
  DeviceBytes target(bytes);
  must(cudaMemset(target.data, 0xa5, bytes), "cudaMemset");
  ReduceTask task{op, dtype, expected.data(), host_sources.data(), sources, count, 1};
  if (op == ReduceOp::avg) task.divisor = sources;
  reduce(task);
  task.target = target.data;
  task.sources = device_sources.data();
  must(cuda_kernels().reduce(task, nullptr), "reduce");
  must(cudaMemcpy(got.data(), target.data, bytes, cudaMemcpyDeviceToHost), "copy back");
  return std::memcmp(expected.data(), got.data(), bytes) == 0;
}

float median_ms(const std::function<void(int)>& launch) {
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin), "event");
  must(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int round = 0; round < 60; ++round) {
    must(cudaEventRecord(begin), "record");
    launch(round);
    must(cudaEventRecord(end), "record");
    must(cudaEventSynchronize(end), "synchronize");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (round >= 10) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void bandwidth(DType dtype, int sources, size_t bytes) {
  constexpr int kRotations = 4;
  std::vector<std::unique_ptr<DeviceBytes>> memory;
  for (int i = 0; i < kRotations * (sources + 1); ++i) {
    memory.push_back(std::make_unique<DeviceBytes>(bytes));
    const auto data = random_bytes(bytes, static_cast<unsigned>(i));
    must(cudaMemcpy(memory.back()->data, data.data(), bytes, cudaMemcpyHostToDevice), "copy");
  }
  const auto at = [&](int round, int i) {
    return memory[static_cast<size_t>(round % kRotations * (sources + 1) + i)]->data;
  };
  const float reduce_ms = median_ms([&](int round) {
    std::vector<const void*> from;
    for (int i = 0; i < sources; ++i) from.push_back(at(round, i));
    must(cuda_kernels().reduce({ReduceOp::sum, dtype, at(round, sources), from.data(), sources,
                                bytes / size_of(dtype), 1},
                               nullptr),
         "reduce");
  });
  const float copy_ms = median_ms([&](int round) {
    must(cudaMemcpyAsync(at(round, sources), at(round, 0), bytes, cudaMemcpyDeviceToDevice),
         "copy");
  });
  const double mb = static_cast<double>(bytes) / 1e6;
  const double reduce_gbs = mb * (sources + 1) / reduce_ms, copy_gbs = mb * 2 / copy_ms;
  std::printf(
      "{\"dtype\": \"%s\", \"sources\": %d, \"bytes\": %zu, \"reduce_ms\": %.4f, "
      "\"reduce_gbs\": %.0f, \"copy_gbs\": %.0f, \"of_copy\": %.3f}\n",
      std::string(name_of(dtype)).c_str(), sources, bytes, reduce_ms, reduce_gbs, copy_gbs,
      reduce_gbs / copy_gbs);
}

}  // namespace

int main() {
  int error = 0;
  if (cuda_device_count(&error) == 0) {
    std::printf("no CUDA device: error %d, %s\n", error, cuda_error_text(error));
    return 77;
  }
  int wrong = 0, cases = 0;
  const unsigned seed = 20261121;
  for (int d = 0; d < kDTypeCount; ++d) {
    for (int o = 0; o < kReduceOpCount; ++o) {
      const auto dtype = static_cast<DType>(d);
      const auto op = static_cast<ReduceOp>(o);
      if (op == ReduceOp::premul_sum || !supports(op, dtype)) continue;
      for (const int sources : {1, 2, 3, 4, 8}) {
        for (const size_t count : {1, 7, 16, 1000, 100003}) {
          ++cases;
          if (same_bits(op, dtype, sources, count, seed)) continue;
          ++wrong;
          std::printf("WRONG %s %s sources %d count %zu seed %u\n",
                      std::string(name_of(op)).c_str(), std::string(name_of(dtype)).c_str(),
                      sources, count, seed);
        }
      }
    }
  }
  std::printf("%d passed, %d failed\n", cases - wrong, wrong);
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const int sources : {2, 4, 8}) bandwidth(dtype, sources, size_t{64} << 20);
  }
  return wrong != 0;
}
