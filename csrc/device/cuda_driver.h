// SPDX-License-Identifier: MIT
// The few functions of the CUDA driver that the runtime has no face for: stream memory operations,
// and virtual memory management. Their addresses are asked of the runtime when first needed, so
// that the library loads on machines without a driver.
//
// A table of addresses, made once; any thread. A null address: this driver does not have it.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

namespace pycomm {

struct CudaDriver {
  PFN_cuDeviceGet_v2000 device_get = nullptr;
  PFN_cuDeviceGetUuid_v11040 device_get_uuid = nullptr;
  PFN_cuDeviceGetAttribute_v2000 device_get_attribute = nullptr;
  PFN_cuDevicePrimaryCtxGetState_v7000 primary_context_state = nullptr;
  PFN_cuGetErrorString_v6000 get_error_string = nullptr;
  PFN_cuStreamBatchMemOp_v11070 stream_batch_mem_op = nullptr;
  PFN_cuMemGetAllocationGranularity_v10020 mem_get_granularity = nullptr;
  PFN_cuMemCreate_v10020 mem_create = nullptr;
  PFN_cuMemRelease_v10020 mem_release = nullptr;
  PFN_cuMemAddressReserve_v10020 mem_address_reserve = nullptr;
  PFN_cuMemAddressFree_v10020 mem_address_free = nullptr;
  PFN_cuMemMap_v10020 mem_map = nullptr;
  PFN_cuMemUnmap_v10020 mem_unmap = nullptr;
  PFN_cuMemSetAccess_v10020 mem_set_access = nullptr;
  PFN_cuMemExportToShareableHandle_v10020 mem_export = nullptr;
  PFN_cuMemImportFromShareableHandle_v10020 mem_import = nullptr;

  bool manages_memory() const {
    return mem_get_granularity && mem_create && mem_release && mem_address_reserve &&
           mem_address_free && mem_map && mem_unmap && mem_set_access && mem_export && mem_import;
  }

  static const CudaDriver& get();
};

}  // namespace pycomm
