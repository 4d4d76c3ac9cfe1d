// SPDX-License-Identifier: MIT
// Ranks as processes that share one GPU, or have one each, for the programs that check, measure and
// question them; and what only CUDA can say, behind functions, since the programs themselves see no
// CUDA header.
//
// A process that has called CUDA cannot be forked, so the program itself never does. With `fake` as
// an argument the ranks are on a fake GPU: so the programs run where there is none.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "connections.h"
#include "device/device.h"
#include "engine/device_group.h"

namespace ranks {

using namespace pycomm;

// One rank's GPU, opened in its own process.
struct Gpu {
  std::shared_ptr<Device> device;
  std::shared_ptr<const DeviceKernels> kernels;
  // Captures what `body` puts on the stream; the result replays it there.
  std::function<std::function<void()>(void* stream, const std::function<void()>& body)> capture;
};
Gpu open_gpu(bool fake, std::string* why, int index = 0);  // no device: the reason

// ranks_cuda.cu: hand-overs between two processes whose kernels spin for each other's word, in
// microseconds each; gives up after a second. `words`: two device addresses, `side` 0 or 1.
double spin_us(uint64_t* const words[2], int side, int rounds);
bool event_handles_work(std::string* why);
int driver_version();

// body(rank, out) in a process for each rank; `out` is memory that the program sees afterwards.
// True when all came to their end and returned true.
bool run(int count, double* out, size_t values, const std::function<bool(int, double*)>& body);
// The same with an engine for each, joined in a group.
bool run_group(int count, double* out, size_t values,
               const std::function<bool(Engine&, int, double*)>& body);

void must(const Failure& failure);
// Device memory that ends with the value.
struct Memory {
  Memory(Device& device, size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data = nullptr;
  Device& device;
};
// Median of the times that a timing event sees around one launch, in microseconds.
double median_us(Device& device, void* stream, int rounds, const std::function<void()>& launch);

// The three programs; exit statuses.
int check(bool fake);
int measure(bool fake, const std::string& commit);
int question(bool fake);

}  // namespace ranks
