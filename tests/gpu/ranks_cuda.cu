// SPDX-License-Identifier: MIT
// What the programs of ranks.h need of CUDA itself: the device, graphs, kernels that spin.
#include <cuda_runtime.h>

#include "device/cuda_device.h"
#include "device/fake_device.h"
#include "ranks.h"

namespace ranks {
namespace {

void check_cuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw std::runtime_error(str(call, ": ", cudaGetErrorString(error)));
}

std::function<void()> capture_on_cuda(void* stream, const std::function<void()>& body) {
  const auto on = static_cast<cudaStream_t>(stream);
  check_cuda(cudaStreamBeginCapture(on, cudaStreamCaptureModeThreadLocal), "begin capture");
  body();
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamEndCapture(on, &graph), "end capture");
  cudaGraphExec_t made = nullptr;
  check_cuda(cudaGraphInstantiate(&made, graph, 0), "instantiate");
  check_cuda(cudaGraphDestroy(graph), "destroy the graph");
  return [made, on] { check_cuda(cudaGraphLaunch(made, on), "launch the graph"); };
}

// The owner spins until its turn comes, then hands on. Ends after `patience` ns whatever happens.
__global__ void spin(volatile uint64_t* mine, volatile uint64_t* theirs, uint64_t value,
                     unsigned long long patience) {
  unsigned long long begin = 0, now = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (*mine < value && now - begin < patience);
  *theirs = value;
  __threadfence_system();
}

Gpu open_fake(int index) {
  Gpu gpu;
  auto device = std::make_shared<FakeDevice>(FakeOptions{.uuid = str("FAKE-", index)});
  gpu.device = device;
  gpu.kernels = host_kernels([device](void* stream, std::function<void()> work) {
    must(device->enqueue_host(stream, std::move(work)));
  });
  gpu.capture = [device](void* stream, const std::function<void()>& body) {
    must(device->begin_capture(stream));
    body();
    std::shared_ptr<const FakeGraph> graph;
    must(device->end_capture(stream, &graph));
    return std::function<void()>([=] { must(device->replay(*graph, stream)); });
  };
  return gpu;
}

}  // namespace

Gpu open_gpu(bool fake, std::string* why, int index) {
  if (fake) return open_fake(index);
  Gpu gpu;
  gpu.device = open_cuda_device(index, why);
  gpu.kernels = {&cuda_kernels(), [](const DeviceKernels*) {}};
  gpu.capture = capture_on_cuda;
  return gpu;
}

double spin_us(uint64_t* const words[2], int side, int rounds) {
  constexpr unsigned long long kPatienceNs = 1000000000;
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  check_cuda(cudaEventCreate(&begin), "event");
  check_cuda(cudaEventCreate(&end), "event");
  check_cuda(cudaEventRecord(begin, stream), "record");
  for (int round = 1; round <= rounds; ++round) {
    // Side 0 begins: it waits for what side 1 answered in the round before.
    const auto value = static_cast<uint64_t>(round);
    spin<<<1, 1, 0, stream>>>(words[side], words[1 - side], side ? value : value - 1, kPatienceNs);
  }
  check_cuda(cudaGetLastError(), "launch");
  check_cuda(cudaEventRecord(end, stream), "record");
  check_cuda(cudaEventSynchronize(end), "synchronize");
  float ms = 0;
  check_cuda(cudaEventElapsedTime(&ms, begin, end), "elapsed");
  return 1e3 * static_cast<double>(ms) / (2.0 * rounds);
}

bool event_handles_work(std::string* why) {
  cudaEvent_t event = nullptr;
  cudaIpcEventHandle_t handle;
  cudaError_t error =
      cudaEventCreateWithFlags(&event, cudaEventInterprocess | cudaEventDisableTiming);
  if (error == cudaSuccess) error = cudaIpcGetEventHandle(&handle, event);
  *why = cudaGetErrorString(error);
  return error == cudaSuccess;
}

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

}  // namespace ranks
