// SPDX-License-Identifier: MIT
// What the programs on a real GPU share: memory that exists twice, on the device and on the host,
// errors that end the program, and the two tables of kernels to be compared.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/device_kernels.h"

namespace gpu {

using namespace pycomm;

inline void must(int error, const char* what) {
  if (error == 0) return;
  std::fprintf(stderr, "%s: %s\n", what, cuda_error_text(error));
  std::exit(1);
}

// Device memory, and beside it as much on the host.
class Twin {
 public:
  explicit Twin(size_t bytes) : host_(bytes / 16 + 2) {
    must(cudaMalloc(&device_, size()), "cudaMalloc");
    must(cudaMemset(device_, 0, size()), "cudaMemset");
  }
  Twin(const Twin&) = delete;
  ~Twin() { cudaFree(device_); }

  size_t size() const { return host_.size() * 16; }
  char* host() { return host_.data()->bytes; }
  char* device() const { return static_cast<char*>(device_); }
  char* on(bool gpu) { return gpu ? device() : host(); }
  // Random bits, so NaN, infinities and subnormals are among them; or ordinary numbers.
  void fill(std::mt19937& random, bool ordinary = false) {
    auto* const words = reinterpret_cast<uint32_t*>(host());
    for (size_t i = 0; i < size() / 4; ++i) {
      const auto bits = static_cast<uint32_t>(random());
      words[i] = ordinary ? (bits & 0x80ffffffu) | 0x3f000000u : bits;
    }
    to_device();
  }
  void to_device() { must(cudaMemcpy(device_, host(), size(), cudaMemcpyHostToDevice), "copy"); }
  // Whether both hold the same bytes now.
  bool same() {
    std::vector<char> back(size());
    must(cudaMemcpy(back.data(), device_, size(), cudaMemcpyDeviceToHost), "copy back");
    return std::memcmp(back.data(), host(), size()) == 0;
  }

 private:
  struct alignas(16) Sixteen {
    char bytes[16];
  };
  std::vector<Sixteen> host_;
  void* device_ = nullptr;
};

inline const DeviceKernels& table(bool gpu) {
  static const auto on_host =
      host_kernels([](void*, const std::function<void()>& work) { work(); });
  return gpu ? cuda_kernels() : *on_host;
}

// Counts what was compared; prints what differs.
struct Tally {
  int passed = 0, failed = 0;
  void add(bool right, const std::string& what) {
    right ? ++passed : ++failed;
    if (!right) std::printf("WRONG %s\n", what.c_str());
  }
};

// gpu_checks.cu, gpu_peers.cu, gpu_rates.cu
void check_kernels(Tally& tally, unsigned seed);
void check_peers(Tally& tally, unsigned seed);
std::string measure_kernels(double copy_gbs);  // rows of JSON
std::string measure_peers(double copy_gbs);
double measure_copy_gbs();
// Median over launches of events around one, in microseconds; round numbers differ.
double median_us(const std::function<void(int round)>& launch, int rounds = 40);

}  // namespace gpu
