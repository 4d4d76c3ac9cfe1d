// SPDX-License-Identifier: MIT
#include "transport/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "base/error.h"

namespace pycomm {

Mapping::Mapping(int fd, size_t offset, size_t bytes) : size_(bytes) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, static_cast<off_t>(offset));
  if (at == MAP_FAILED) throw_system(str("cannot map ", bytes, " bytes of shared memory"));
  data_ = static_cast<std::byte*>(at);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    reset();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Mapping::~Mapping() { reset(); }

void Mapping::reset() {
  if (data_) ::munmap(data_, size_);
  data_ = nullptr;
}

Fd create_shared_memory(size_t bytes) {
  Fd fd(::memfd_create("pycomm", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) throw_system("memfd_create failed");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    throw_system(str("cannot make an anonymous shared segment of ", bytes, " bytes"));
  }
  // A peer that shrank the segment could kill us with SIGBUS.
  ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  return fd;
}

}  // namespace pycomm
