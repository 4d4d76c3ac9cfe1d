// SPDX-License-Identifier: MIT
// A kernel's block as a thread of the host: see device_env.h. What would be a fault on a device, a
// 16-byte access that is not aligned, the sanitizers report. One per block that runs; not shared.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

#include "kernels/device_env.h"

namespace pycomm {
namespace {

class HostEnv {
 public:
  HostEnv(size_t block, size_t blocks, int threads)
      : block_(block), blocks_(blocks), threads_(threads) {}

  size_t block() const { return block_; }
  size_t blocks() const { return blocks_; }
  int threads() const { return threads_; }
  template <class Share>
  void each_thread(const Share& share) const {
    for (int thread = 0; thread < threads_; ++thread) share(thread);
  }
  void barrier() const {}

  // Threads of a host come in groups of 32 here, whatever their number.
  template <class Work>
  void each_warp(const Work& work) const {
    const size_t warps = (static_cast<size_t>(threads_) + 31) / 32;
    for (size_t w = 0; w < warps; ++w) work(block_ * warps + w, blocks_ * warps);
  }
  template <class Share>
  void each_lane(const Share& share) const {
    for (int lane = 0; lane < 32; ++lane) share(lane);
  }
  template <class T>
  struct PerLane {
    T values[32];
    T& operator[](int lane) { return values[lane]; }
  };
  template <int kLanes>
  void max_over(PerLane<uint32_t>& values) const {
    for (int first = 0; first < 32; first += kLanes) {
      uint32_t* const begin = values.values + first;
      std::fill_n(begin, kLanes, *std::max_element(begin, begin + kLanes));
    }
  }

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
  template <class T>
  T& shared() const {
    static_assert(sizeof(T) <= sizeof(shared_));
    return *new (shared_) T;
  }

  uint64_t load_acquire(const uint64_t* from) const {
    return std::atomic_ref(*const_cast<uint64_t*>(from)).load(std::memory_order_acquire);
  }
  void store_release(uint64_t* to, uint64_t value) const {
    std::atomic_ref(*to).store(value, std::memory_order_release);
  }
  uint32_t load_relaxed(const uint32_t* from) const {
    return std::atomic_ref(*const_cast<uint32_t*>(from)).load(std::memory_order_relaxed);
  }
  void store_relaxed(uint32_t* to, uint32_t value) const {
    std::atomic_ref(*to).store(value, std::memory_order_relaxed);
  }
  uint32_t fetch_add(uint32_t* to, uint32_t value) const {
    return std::atomic_ref(*to).fetch_add(value, std::memory_order_acq_rel);
  }
  void replace_zero(uint64_t* to, uint64_t value) const {
    uint64_t zero = 0;
    std::atomic_ref(*to).compare_exchange_strong(zero, value);
  }
  uint64_t now_ns() const {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
  }
  void pause() const { std::this_thread::yield(); }

  void raise(uint32_t* flags, uint32_t bits) const {
    std::atomic_ref(*flags).fetch_or(bits, std::memory_order_relaxed);
  }
  float widen_half(uint16_t code) const { return widen<kFloat16, float>(uint32_t{code}); }
  uint16_t narrow_half(float value) const {
    return static_cast<uint16_t>(narrow<kFloat16, float, uint32_t>(value));
  }

 private:
  size_t block_, blocks_;
  int threads_;
  alignas(16) mutable char shared_[1024] = {};
};

}  // namespace
}  // namespace pycomm
