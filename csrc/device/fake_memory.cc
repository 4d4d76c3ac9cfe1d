// SPDX-License-Identifier: MIT
// The memory of the fake GPU. Shareable memory is a memfd whose name is the GPU's uuid, so that an
// importer can tell whose it is.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <new>

#include "device/fake_device.h"

namespace pycomm {
namespace {

constexpr size_t kPage = 4096;
constexpr std::align_val_t kAlignment{256};
constexpr char kName[] = "fake-gpu:";

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

Failure failed(const char* call, const DeviceFacts& facts, const std::string& why) {
  return {FailureKind::system,
          str(call, " failed on GPU ", facts.index, " (", facts.uuid, "): ", why),
          {}};
}

// Where an IPC handle of the fake says that its memory is.
struct Whereabouts {
  pid_t pid;
  int fd;
};

// The uuid of the GPU that has this memory; empty for what is no fake GPU's.
std::string owner_of(int fd) {
  char path[256] = {};
  if (::readlink(str("/proc/self/fd/", fd).c_str(), path, sizeof path - 1) <= 0) return "";
  const std::string text = path;
  const size_t at = text.find(kName);
  if (at == std::string::npos) return "";
  const size_t from = at + sizeof kName - 1;
  return text.substr(from, text.find(' ', from) - from);
}

}  // namespace

void FakeDevice::release_all() {
  for (const auto& [data, bytes] : memory_) {
    shared_.count(data) ? void(::munmap(data, bytes)) : ::operator delete(data, kAlignment);
  }
  for (const auto& one : pinned_) ::operator delete(one.first, kAlignment);
}

size_t FakeDevice::live() const {
  const std::lock_guard lock(mutex_);
  return streams_.size() + events_.size() + memory_.size() + pinned_.size() + registered_.size();
}

size_t FakeDevice::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_bytes_;
}

Failure FakeDevice::allocate(size_t bytes, void** data) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("allocate", Call::not_while_capturing)) return failure;
  if (used_bytes_ + bytes > options_.memory_bytes) {
    return failed("allocate", facts_,
                  str("out of memory: ", bytes, " bytes wanted, ", used_bytes_, " of ",
                      options_.memory_bytes, " in use"));
  }
  *data = ::operator new(bytes ? bytes : 1, kAlignment);
  memory_[*data] = bytes;
  used_bytes_ += bytes;
  return {};
}

Failure FakeDevice::release(void* data) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("release", Call::not_while_capturing)) return failure;
  const auto at = memory_.find(data);
  if (at == memory_.end() || shared_.count(data)) {
    return failed("release", facts_, "not what allocate() gave");
  }
  used_bytes_ -= at->second;
  memory_.erase(at);
  ::operator delete(data, kAlignment);
  return {};
}

// Under mutex_.
Failure FakeDevice::keep_shared(const char* call, Fd fd, size_t bytes, SharedAllocation* out) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return failed(call, facts_, std::strerror(errno));
  out->data = at;
  out->bytes = bytes;
  memory_[at] = bytes;
  shared_.emplace(at, std::move(fd));
  return {};
}

Failure FakeDevice::allocate_shared(ShareKind kind, size_t bytes, SharedAllocation* out) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("allocate_shared", Call::not_while_capturing)) return failure;
  if (!(kind == ShareKind::descriptor ? options_.descriptors : options_.ipc)) {
    return failed("allocate_shared", facts_, "not supported by this GPU");
  }
  bytes = whole_pages(bytes ? bytes : 1);
  if (used_bytes_ + bytes > options_.memory_bytes) {
    return failed("allocate_shared", facts_, str("out of memory: ", bytes, " bytes wanted"));
  }
  Fd fd(::memfd_create(str(kName, options_.uuid).c_str(), MFD_CLOEXEC));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return failed("allocate_shared", facts_, std::strerror(errno));
  }
  *out = {};
  out->kind = kind;
  if (Failure failure = keep_shared("allocate_shared", std::move(fd), bytes, out)) return failure;
  used_bytes_ += bytes;
  return {};
}

Failure FakeDevice::export_shared(const SharedAllocation& allocation, ShareHandle* out) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("export_shared")) return failure;
  const auto at = shared_.find(allocation.data);
  if (at == shared_.end() || allocation.imported) {
    return failed("export_shared", facts_, "not what allocate_shared() gave");
  }
  out->kind = allocation.kind;
  out->bytes = allocation.bytes;
  if (allocation.kind == ShareKind::descriptor) {
    out->descriptor = Fd(::fcntl(at->second.get(), F_DUPFD_CLOEXEC, 0));
    if (!out->descriptor) return failed("export_shared", facts_, std::strerror(errno));
  } else {
    const Whereabouts where{::getpid(), at->second.get()};
    std::memcpy(out->ipc.data(), &where, sizeof where);
  }
  return {};
}

Failure FakeDevice::import_shared(const ShareHandle& handle, SharedAllocation* out) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("import_shared", Call::not_while_capturing)) return failure;
  Fd fd;
  if (handle.kind == ShareKind::descriptor) {
    fd = Fd(::fcntl(handle.descriptor.get(), F_DUPFD_CLOEXEC, 0));
  } else {
    Whereabouts where{};
    std::memcpy(&where, handle.ipc.data(), sizeof where);
    if (where.pid == ::getpid()) {
      return failed("import_shared", facts_, "this process exported the handle itself");
    }
    fd = Fd(::open(str("/proc/", where.pid, "/fd/", where.fd).c_str(), O_RDWR | O_CLOEXEC));
  }
  if (!fd) return failed("import_shared", facts_, std::strerror(errno));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0 || static_cast<size_t>(status.st_size) < handle.bytes) {
    return failed("import_shared", facts_, "the handle is not that of such memory");
  }
  const std::string owner = owner_of(fd.get());
  if (owner.empty() || (owner != options_.uuid && !options_.peer_access)) {
    return failed("import_shared", facts_, str("no peer access to the GPU ", owner));
  }
  *out = {};
  out->kind = handle.kind;
  out->imported = true;
  return keep_shared("import_shared", std::move(fd), handle.bytes, out);
}

Failure FakeDevice::close_shared(const SharedAllocation& allocation) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("close_shared", Call::not_while_capturing)) return failure;
  if (!shared_.erase(allocation.data)) return failed("close_shared", facts_, "not mapped");
  memory_.erase(allocation.data);
  ::munmap(allocation.data, allocation.bytes);
  if (!allocation.imported) used_bytes_ -= allocation.bytes;
  return {};
}

Failure FakeDevice::allocate_pinned(size_t bytes, HostAllocation* out) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("allocate_pinned", Call::not_while_capturing)) return failure;
  void* data = ::operator new(bytes ? bytes : 1, kAlignment);
  pinned_[data] = bytes;
  *out = {data, data, bytes};
  return {};
}

Failure FakeDevice::release_pinned(const HostAllocation& allocation) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("release_pinned", Call::not_while_capturing)) return failure;
  if (!pinned_.erase(allocation.host)) return failed("release_pinned", facts_, "not pinned");
  ::operator delete(allocation.host, kAlignment);
  return {};
}

Failure FakeDevice::register_host(void* host, size_t bytes, HostAllocation* out) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("register_host", Call::not_while_capturing)) return failure;
  if (!options_.host_memory) return failed("register_host", facts_, "not supported by this GPU");
  if (reinterpret_cast<uintptr_t>(host) % kPage || bytes % kPage || bytes == 0) {
    return failed("register_host", facts_, "address and size must be multiples of 4096");
  }
  if (!registered_.emplace(host, bytes).second) {
    return failed("register_host", facts_, "part or all of the memory is already registered");
  }
  *out = {host, host, bytes};
  return {};
}

Failure FakeDevice::unregister_host(const HostAllocation& allocation) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("unregister_host", Call::not_while_capturing)) return failure;
  return registered_.erase(allocation.host) ? Failure{}
                                            : failed("unregister_host", facts_, "not registered");
}

}  // namespace pycomm
