// SPDX-License-Identifier: MIT
// Anonymous shared memory: a memfd, and mappings of parts of it. Nothing appears in /dev/shm; the
// memory goes when the last descriptor and mapping go, also after kill -9.
// Resources: one owner, not copied. A mapping may be used from any thread.
#pragma once

#include <cstddef>

#include "base/fd.h"

namespace pycomm {

class Mapping {
 public:
  Mapping() = default;
  // Maps `bytes` at `offset` (multiples of the page size) of `fd`, or private zeroed memory when
  // fd < 0. Throws CommError(system).
  Mapping(int fd, size_t offset, size_t bytes);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void reset();
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A sealed-size anonymous segment, all zero. Throws CommError(system) that says how much was asked
// for.
Fd create_shared_memory(size_t bytes);

}  // namespace pycomm
