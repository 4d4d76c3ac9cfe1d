// SPDX-License-Identifier: MIT
// The memory of a CudaDevice: ordinary, shareable in two ways, pinned, registered.
#include <cuda_runtime.h>

#include <cstring>

#include "base/limits.h"
#include "device/cuda_device.h"
#include "device/cuda_driver.h"

namespace pycomm {
namespace {

CUmemAllocationProp properties_of(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Failure CudaDevice::allocate(size_t bytes, void** data) {
  const DeviceScope scope(*this);
  return check("cudaMalloc", cudaMalloc(data, bytes ? bytes : 1));
}

Failure CudaDevice::release(void* data) {
  const DeviceScope scope(*this);
  return check("cudaFree", cudaFree(data));
}

// Gives physical memory an address that this device may read and write. Owns `handle` from here on,
// also when it fails.
Failure CudaDevice::map(uint64_t handle, size_t bytes, SharedAllocation* out) {
  const CudaDriver& driver = CudaDriver::get();
  CUdeviceptr at = 0;
  Failure failure =
      check_driver("cuMemAddressReserve", driver.mem_address_reserve(&at, bytes, 0, 0, 0));
  if (!failure) failure = check_driver("cuMemMap", driver.mem_map(at, bytes, 0, handle, 0));
  if (failure) {
    if (at) driver.mem_address_free(at, bytes);
    driver.mem_release(handle);
    return failure;
  }
  CUmemAccessDesc access{};
  access.location = properties_of(facts_.index).location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  failure = check_driver("cuMemSetAccess", driver.mem_set_access(at, bytes, &access, 1));
  out->data = reinterpret_cast<void*>(at);
  out->bytes = bytes;
  out->kind = ShareKind::descriptor;
  out->token = handle;
  if (failure) {
    close_shared(*out);
    *out = {};
  }
  return failure;
}

Failure CudaDevice::allocate_shared(ShareKind kind, size_t bytes, SharedAllocation* out) {
  const DeviceScope scope(*this);
  *out = {};
  if (kind == ShareKind::ipc) {
    // Smaller allocations lie with others in one block, and a handle stands for the block.
    bytes = round_up(bytes ? bytes : 1, kIpcBlockBytes);
    out->kind = kind;
    out->bytes = bytes;
    return check("cudaMalloc", cudaMalloc(&out->data, bytes));
  }
  if (!facts_.descriptors) {
    return {FailureKind::system,
            str("GPU ", facts_.index, " (", facts_.uuid,
                ") or its driver cannot share memory by file descriptor"),
            {}};
  }
  const CudaDriver& driver = CudaDriver::get();
  const CUmemAllocationProp properties = properties_of(facts_.index);
  size_t unit = 0;
  if (Failure failure = check_driver(
          "cuMemGetAllocationGranularity",
          driver.mem_get_granularity(&unit, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED))) {
    return failure;
  }
  bytes = round_up(bytes ? bytes : 1, unit);
  CUmemGenericAllocationHandle handle = 0;
  if (Failure failure =
          check_driver("cuMemCreate", driver.mem_create(&handle, bytes, &properties, 0))) {
    return failure;
  }
  return map(handle, bytes, out);
}

Failure CudaDevice::export_shared(const SharedAllocation& allocation, ShareHandle* out) {
  const DeviceScope scope(*this);
  out->kind = allocation.kind;
  out->bytes = allocation.bytes;
  if (allocation.kind == ShareKind::ipc) {
    static_assert(sizeof(cudaIpcMemHandle_t) == sizeof out->ipc);
    cudaIpcMemHandle_t handle;
    Failure failure = check("cudaIpcGetMemHandle", cudaIpcGetMemHandle(&handle, allocation.data));
    if (!failure) std::memcpy(out->ipc.data(), &handle, sizeof handle);
    return failure;
  }
  int descriptor = -1;
  Failure failure =
      check_driver("cuMemExportToShareableHandle",
                   CudaDriver::get().mem_export(&descriptor, allocation.token,
                                                CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  if (!failure) out->descriptor = Fd(descriptor);
  return failure;
}

Failure CudaDevice::import_shared(const ShareHandle& handle, SharedAllocation* out) {
  const DeviceScope scope(*this);
  *out = {};
  if (handle.kind == ShareKind::ipc) {
    cudaIpcMemHandle_t ipc;
    std::memcpy(&ipc, handle.ipc.data(), sizeof ipc);
    Failure failure = check("cudaIpcOpenMemHandle",
                            cudaIpcOpenMemHandle(&out->data, ipc, cudaIpcMemLazyEnablePeerAccess));
    out->kind = ShareKind::ipc;
    out->bytes = handle.bytes;
    out->imported = true;
    return failure;
  }
  if (!facts_.descriptors) {
    return {FailureKind::system,
            str("GPU ", facts_.index, " (", facts_.uuid,
                ") or its driver cannot map memory behind a file descriptor"),
            {}};
  }
  CUmemGenericAllocationHandle memory = 0;
  // The descriptor itself goes in as the pointer.
  void* const descriptor = reinterpret_cast<void*>(static_cast<uintptr_t>(handle.descriptor.get()));
  if (Failure failure =
          check_driver("cuMemImportFromShareableHandle",
                       CudaDriver::get().mem_import(&memory, descriptor,
                                                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR))) {
    return failure;
  }
  Failure failure = map(memory, handle.bytes, out);
  out->imported = true;
  return failure;
}

Failure CudaDevice::close_shared(const SharedAllocation& allocation) {
  const DeviceScope scope(*this);
  if (allocation.kind == ShareKind::ipc) {
    return allocation.imported
               ? check("cudaIpcCloseMemHandle", cudaIpcCloseMemHandle(allocation.data))
               : check("cudaFree", cudaFree(allocation.data));
  }
  const CudaDriver& driver = CudaDriver::get();
  const auto at = reinterpret_cast<CUdeviceptr>(allocation.data);
  const Failure unmapped = check_driver("cuMemUnmap", driver.mem_unmap(at, allocation.bytes));
  const Failure freed =
      check_driver("cuMemAddressFree", driver.mem_address_free(at, allocation.bytes));
  const Failure released = check_driver("cuMemRelease", driver.mem_release(allocation.token));
  return unmapped ? unmapped : freed ? freed : released;
}

Failure CudaDevice::allocate_pinned(size_t bytes, HostAllocation* out) {
  const DeviceScope scope(*this);
  *out = {};
  out->bytes = bytes;
  if (Failure failure =
          check("cudaHostAlloc", cudaHostAlloc(&out->host, bytes ? bytes : 1,
                                               cudaHostAllocPortable | cudaHostAllocMapped))) {
    return failure;
  }
  Failure failure =
      check("cudaHostGetDevicePointer", cudaHostGetDevicePointer(&out->device, out->host, 0));
  if (failure) cudaFreeHost(out->host);
  return failure;
}

Failure CudaDevice::release_pinned(const HostAllocation& allocation) {
  const DeviceScope scope(*this);
  return check("cudaFreeHost", cudaFreeHost(allocation.host));
}

Failure CudaDevice::register_host(void* host, size_t bytes, HostAllocation* out) {
  const DeviceScope scope(*this);
  *out = {host, nullptr, bytes};
  if (Failure failure =
          check("cudaHostRegister",
                cudaHostRegister(host, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped))) {
    return failure;
  }
  Failure failure =
      check("cudaHostGetDevicePointer", cudaHostGetDevicePointer(&out->device, host, 0));
  if (failure) cudaHostUnregister(host);
  return failure;
}

Failure CudaDevice::unregister_host(const HostAllocation& allocation) {
  const DeviceScope scope(*this);
  return check("cudaHostUnregister", cudaHostUnregister(allocation.host));
}

}  // namespace pycomm
