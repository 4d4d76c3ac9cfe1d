// SPDX-License-Identifier: MIT
// The GPU's reduction compiled for the CPU: for tests, and for machines without nvcc.
// Flags: -ffp-contract=off, like every file that must round as the CPU kernels do.
#include <cstring>

#include "kernels/cuda_reduce.h"
#include "kernels/reduce_body.h"

namespace pycomm {
namespace {

static_assert(kSourcesMax == kCudaSourcesMax);
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

class HostEnv {
 public:
  HostEnv(size_t thread, size_t threads) : thread_(thread), threads_(threads) {}

  size_t thread() const { return thread_; }
  size_t threads() const { return threads_; }
  // Aligned types, so that the sanitizer reports what would be a fault on the device.
  Bytes16 load16(const char* from) const { return *reinterpret_cast<const Bytes16*>(from); }
  void store16(char* to, Bytes16 bytes) const { *reinterpret_cast<Bytes16*>(to) = bytes; }
  template <class T>
  T load(const char* from) const {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  template <class T>
  void store(char* to, T value) const {
    std::memcpy(to, &value, sizeof value);
  }
  float widen_half(uint16_t code) const { return widen<kFloat16, float>(uint32_t{code}); }
  uint16_t narrow_half(float value) const {
    return static_cast<uint16_t>(narrow<kFloat16, float, uint32_t>(value));
  }

 private:
  size_t thread_, threads_;
};

}  // namespace

bool cuda_reduce_supports(ReduceOp op, DType dtype) {
  ReduceTask task{op, dtype, nullptr, nullptr, 1, 0, 1};
  return choose_kernel(task, kInvalidValue, []<class Format, class Op>(auto) { return 0; }) == 0;
}

int cuda_reduce_on_host(const ReduceTask& task, int threads) {
  return choose_kernel(task, kInvalidValue, [&]<class Format, class Op>(auto finish) {
    const auto arguments = split_for_vectors(task, sizeof(typename Format::Code));
    for (int t = 0; t < threads; ++t) {
      reduce_body<Format, Op>(HostEnv(t, threads), arguments, finish);
    }
    return 0;
  });
}

}  // namespace pycomm
