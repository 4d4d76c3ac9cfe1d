// SPDX-License-Identifier: MIT
#include "device/cuda_device.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/limits.h"
#include "device/cuda_driver.h"

namespace pycomm {
namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

DeviceProgress progress_of(cudaError_t error) {
  if (error == cudaSuccess) return DeviceProgress::done;
  cudaGetLastError();
  return error == cudaErrorNotReady ? DeviceProgress::pending : DeviceProgress::failed;
}

// The graph that the stream is being captured into, or nullptr.
cudaError_t graph_of(cudaStream_t stream, cudaGraph_t* graph) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  *graph = nullptr;
#if CUDART_VERSION >= 13000
  return cudaStreamGetCaptureInfo(stream, &status, &id, graph);
#else
  return cudaStreamGetCaptureInfo_v2(stream, &status, &id, graph);
#endif
}

std::string text_of(const CUuuid& uuid) {
  const auto* b = reinterpret_cast<const unsigned char*>(uuid.bytes);
  char text[48];
  std::snprintf(text, sizeof text,
                "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
                b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
                b[14], b[15]);
  return text;
}

std::string no_devices(cudaError_t error, int count) {
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    return str("no NVIDIA driver that serves CUDA ", CUDART_VERSION / 1000, ".",
               CUDART_VERSION % 1000 / 10, " (cudaGetDeviceCount: ", cudaGetErrorString(error),
               ")");
  }
  if (error != cudaSuccess) return str("no CUDA device: ", cudaGetErrorString(error));
  return str("no such CUDA device: this process sees ", count);
}

DeviceFacts facts_of(int index) {
  DeviceFacts facts;
  facts.index = index;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) == cudaSuccess) {
    facts.name = properties.name;
    facts.processors = properties.multiProcessorCount;
    facts.memory_bytes = properties.totalGlobalMem;
    facts.uuid = text_of(properties.uuid);
  }
  cudaDriverGetVersion(&facts.driver);
  int unified = 0, registers = 0;
  cudaDeviceGetAttribute(&unified, cudaDevAttrUnifiedAddressing, index);
  cudaDeviceGetAttribute(&registers, cudaDevAttrHostRegisterSupported, index);
  facts.host_memory = unified && registers;
  facts.ipc = unified;
  const CudaDriver& driver = CudaDriver::get();
  CUdevice device = 0;
  if (!driver.device_get || driver.device_get(&device, index) != CUDA_SUCCESS) return facts;
  const auto has = [&](CUdevice_attribute attribute) {
    int value = 0;
    return driver.device_get_attribute &&
           driver.device_get_attribute(&value, attribute, device) == CUDA_SUCCESS && value != 0;
  };
  // A slice of a GPU has its own; the properties may name the whole.
  CUuuid uuid{};
  if (driver.device_get_uuid && driver.device_get_uuid(&uuid, device) == CUDA_SUCCESS) {
    facts.uuid = text_of(uuid);
  }
  facts.words =
      driver.stream_batch_mem_op && has(CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS);
  facts.descriptors = driver.manages_memory() &&
                      has(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) &&
                      has(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
  return facts;
}

std::vector<std::string> unreachable_from(int index, int count) {
  std::vector<std::string> all;
  for (int other = 0; other < count; ++other) {
    int can = 0;
    if (other == index || cudaDeviceCanAccessPeer(&can, index, other) != cudaSuccess || can) {
      continue;
    }
    all.push_back(facts_of(other).uuid);
  }
  return all;
}

}  // namespace

std::unique_ptr<Device> open_cuda_device(int index, std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || index < 0 || index >= count) {
    *why = no_devices(error, count);
    return nullptr;
  }
  DeviceFacts facts = facts_of(index);
  auto unreachable = unreachable_from(index, count);
  cudaGetLastError();  // what an attribute that a driver does not know has left
  return std::make_unique<CudaDevice>(std::move(facts), std::move(unreachable));
}

bool CudaDevice::reaches(const std::string& uuid) const {
  return std::find(unreachable_.begin(), unreachable_.end(), uuid) == unreachable_.end();
}

Failure CudaDevice::check(const char* call, int error) const {
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  const auto code = static_cast<cudaError_t>(error);
  return {FailureKind::system,
          str(call, " failed on GPU ", facts_.index, " (", facts_.uuid,
              "): ", cudaGetErrorString(code), " (", cudaGetErrorName(code), ")"),
          {}};
}

Failure CudaDevice::check_driver(const char* call, int error) const {
  if (error == CUDA_SUCCESS) return {};
  const char* text = nullptr;
  const auto get = CudaDriver::get().get_error_string;
  if (!get || get(static_cast<CUresult>(error), &text) != CUDA_SUCCESS) text = "unknown error";
  return {FailureKind::system,
          str(call, " failed on GPU ", facts_.index, " (", facts_.uuid, "): ", text, " (CUresult ",
              error, ")"),
          {}};
}

// Every call of the runtime is made inside: a thread that has not chosen a device is on the first
// one, and would make a context there, for hundreds of MiB.
int CudaDevice::enter() {
  int previous = facts_.index;
  cudaGetDevice(&previous);
  cudaSetDevice(facts_.index);
  return previous;
}

void CudaDevice::leave(int previous) {
  if (previous == facts_.index) return;
  // Going back to a device that nobody uses would make a context there, for hundreds of MiB.
  unsigned flags = 0;
  int active = 1;
  const auto state = CudaDriver::get().primary_context_state;
  if (state && state(previous, &flags, &active) == CUDA_SUCCESS && !active) return;
  cudaSetDevice(previous);
}

Failure CudaDevice::create_stream(bool high_priority, void** stream) {
  const DeviceScope scope(*this);
  int least = 0, greatest = 0;
  if (Failure failure = check("cudaDeviceGetStreamPriorityRange",
                              cudaDeviceGetStreamPriorityRange(&least, &greatest))) {
    return failure;
  }
  cudaStream_t made = nullptr;
  Failure failure = check(
      "cudaStreamCreateWithPriority",
      cudaStreamCreateWithPriority(&made, cudaStreamNonBlocking, high_priority ? greatest : least));
  *stream = made;
  return failure;
}

Failure CudaDevice::destroy_stream(void* stream) {
  const DeviceScope scope(*this);
  return check("cudaStreamDestroy", cudaStreamDestroy(stream_of(stream)));
}

DeviceProgress CudaDevice::query_stream(void* stream) {
  const DeviceScope scope(*this);
  return progress_of(cudaStreamQuery(stream_of(stream)));
}

Failure CudaDevice::synchronize(void* stream) {
  const DeviceScope scope(*this);
  return check("cudaStreamSynchronize", cudaStreamSynchronize(stream_of(stream)));
}

Failure CudaDevice::create_event(bool timing, void** event) {
  const DeviceScope scope(*this);
  cudaEvent_t made = nullptr;
  Failure failure =
      check("cudaEventCreateWithFlags",
            cudaEventCreateWithFlags(&made, timing ? cudaEventDefault : cudaEventDisableTiming));
  *event = made;
  return failure;
}

Failure CudaDevice::destroy_event(void* event) {
  const DeviceScope scope(*this);
  return check("cudaEventDestroy", cudaEventDestroy(event_of(event)));
}

Failure CudaDevice::record(void* event, void* stream) {
  const DeviceScope scope(*this);
  return check("cudaEventRecord", cudaEventRecord(event_of(event), stream_of(stream)));
}

Failure CudaDevice::wait_event(void* stream, void* event) {
  const DeviceScope scope(*this);
  return check("cudaStreamWaitEvent", cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
}

DeviceProgress CudaDevice::query_event(void* event) {
  const DeviceScope scope(*this);
  return progress_of(cudaEventQuery(event_of(event)));
}

Failure CudaDevice::synchronize_event(void* event) {
  const DeviceScope scope(*this);
  return check("cudaEventSynchronize", cudaEventSynchronize(event_of(event)));
}

Failure CudaDevice::elapsed_ms(void* begin, void* end, float* ms) {
  const DeviceScope scope(*this);
  return check("cudaEventElapsedTime", cudaEventElapsedTime(ms, event_of(begin), event_of(end)));
}

Failure CudaDevice::word_operations(void* stream, std::span<const WordOperation> operations) {
  if (!facts_.words) {
    return {FailureKind::system,
            str("GPU ", facts_.index, " (", facts_.uuid,
                ") or its driver has no 64-bit stream memory operations"),
            {}};
  }
  const DeviceScope scope(*this);
  std::array<CUstreamBatchMemOpParams, kWordOperationsMax> batch;
  while (!operations.empty()) {
    const size_t count = std::min(operations.size(), batch.size());
    for (size_t i = 0; i < count; ++i) {
      const WordOperation& one = operations[i];
      const auto address = reinterpret_cast<CUdeviceptr>(one.word);
      batch[i] = {};
      if (one.kind == WordOperation::Kind::write) {
        // The default flag fences what the stream did before, for the whole system.
        batch[i].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_64;
        batch[i].writeValue.address = address;
        batch[i].writeValue.value64 = one.value;
        batch[i].writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
      } else {
        batch[i].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_64;
        batch[i].waitValue.address = address;
        batch[i].waitValue.value64 = one.value;
        batch[i].waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
      }
    }
    const CUresult error = CudaDriver::get().stream_batch_mem_op(
        static_cast<CUstream>(stream), static_cast<unsigned>(count), batch.data(), 0);
    if (Failure failure = check_driver("cuStreamBatchMemOp", error)) return failure;
    operations = operations.subspan(count);
  }
  return {};
}

Failure CudaDevice::copy(void* stream, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return {};
  const DeviceScope scope(*this);
  return check("cudaMemcpyAsync",
               cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)));
}

Failure CudaDevice::fill(void* stream, void* to, int byte, size_t bytes) {
  if (bytes == 0) return {};
  const DeviceScope scope(*this);
  return check("cudaMemsetAsync", cudaMemsetAsync(to, byte, bytes, stream_of(stream)));
}

Failure CudaDevice::enqueue_host(void* stream, std::function<void()> function) {
  using Function = std::function<void()>;
  const DeviceScope scope(*this);
  cudaGraph_t graph = nullptr;
  if (Failure failure = check("cudaStreamGetCaptureInfo", graph_of(stream_of(stream), &graph))) {
    return failure;
  }
  auto owned = std::make_unique<Function>(std::move(function));
  if (!graph) {
    const auto run_once = [](void* data) {
      const std::unique_ptr<Function> mine(static_cast<Function*>(data));
      (*mine)();
    };
    Failure failure =
        check("cudaLaunchHostFunc", cudaLaunchHostFunc(stream_of(stream), run_once, owned.get()));
    if (!failure) owned.release();
    return failure;
  }
  const auto destroy = [](void* data) { delete static_cast<Function*>(data); };
  cudaUserObject_t object = nullptr;
  if (Failure failure = check(
          "cudaUserObjectCreate",
          cudaUserObjectCreate(&object, owned.get(), destroy, 1, cudaUserObjectNoDestructorSync))) {
    return failure;
  }
  Function* const kept = owned.release();  // `object` has it now
  if (Failure failure =
          check("cudaGraphRetainUserObject",
                cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove))) {
    cudaUserObjectRelease(object, 1);
    return failure;
  }
  const auto run = [](void* data) { (*static_cast<Function*>(data))(); };
  return check("cudaLaunchHostFunc", cudaLaunchHostFunc(stream_of(stream), run, kept));
}

Failure CudaDevice::capture_of(void* stream, Capture* out) {
  const DeviceScope scope(*this);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  const cudaError_t error = cudaStreamGetCaptureInfo(stream_of(stream), &status, &id);
  if (Failure failure = check("cudaStreamGetCaptureInfo", error)) return failure;
  *out = {status == cudaStreamCaptureStatusNone ? 0 : static_cast<uint64_t>(id),
          status == cudaStreamCaptureStatusInvalidated};
  return {};
}

}  // namespace pycomm
