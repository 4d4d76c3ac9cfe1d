// SPDX-License-Identifier: MIT
#include "device/cuda_driver.h"

#include <cuda_runtime.h>

namespace pycomm {
namespace {

// `version` is the one of the type that the address is given, see cudaTypedefs.h; a later one could
// have other parameters.
template <class Function>
void find(const char* name, unsigned version, Function& function) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found);
#else
  static_cast<void>(version);
  const cudaError_t error = cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) cudaGetLastError();  // must not be the next call's error
  if (error == cudaSuccess && found == cudaDriverEntryPointSuccess) {
    function = reinterpret_cast<Function>(address);
  }
}

CudaDriver look_up() {
  CudaDriver driver;
  find("cuDeviceGet", 2000, driver.device_get);
  find("cuDeviceGetUuid", 11040, driver.device_get_uuid);
  find("cuDeviceGetAttribute", 2000, driver.device_get_attribute);
  find("cuDevicePrimaryCtxGetState", 7000, driver.primary_context_state);
  find("cuGetErrorString", 6000, driver.get_error_string);
  find("cuStreamBatchMemOp", 11070, driver.stream_batch_mem_op);
  find("cuMemGetAllocationGranularity", 10020, driver.mem_get_granularity);
  find("cuMemCreate", 10020, driver.mem_create);
  find("cuMemRelease", 10020, driver.mem_release);
  find("cuMemAddressReserve", 10020, driver.mem_address_reserve);
  find("cuMemAddressFree", 10020, driver.mem_address_free);
  find("cuMemMap", 10020, driver.mem_map);
  find("cuMemUnmap", 10020, driver.mem_unmap);
  find("cuMemSetAccess", 10020, driver.mem_set_access);
  find("cuMemExportToShareableHandle", 10020, driver.mem_export);
  find("cuMemImportFromShareableHandle", 10020, driver.mem_import);
  return driver;
}

}  // namespace

const CudaDriver& CudaDriver::get() {
  static const CudaDriver driver = look_up();
  return driver;
}

}  // namespace pycomm
