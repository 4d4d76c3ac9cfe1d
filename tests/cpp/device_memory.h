// SPDX-License-Identifier: MIT
// What tests of device kernels share: memory that begins on a 16-byte boundary, as a device's
// does, with guard bytes behind it; and host kernels that run at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "kernels/device_kernels.h"

namespace device_memory {

inline constexpr char kGuard = 0x5a;

struct alignas(16) Sixteen {
  char bytes[16];
};

class Aligned {
 public:
  explicit Aligned(size_t bytes) : blocks_(bytes / 16 + 2) { std::memset(data(), kGuard, size()); }
  char* data() { return blocks_.data()->bytes; }
  size_t size() const { return blocks_.size() * 16; }
  // Whether nothing was written from `from` to the end.
  bool is_untouched(const char* from) {
    return std::all_of(from, static_cast<const char*>(data() + size()),
                       [](char c) { return c == kGuard; });
  }

 private:
  std::vector<Sixteen> blocks_;
};

// There is one stream, and work on it is done when the call returns.
inline const pycomm::DeviceKernels& kernels() {
  static const auto table =
      pycomm::host_kernels([](void*, const std::function<void()>& work) { work(); });
  return *table;
}

}  // namespace device_memory
