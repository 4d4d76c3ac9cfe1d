// SPDX-License-Identifier: MIT
// How the ranks of a group work together on their devices, chosen alike on all of them from what
// each says of its own. Pure functions of values; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "device/device.h"

namespace pycomm {

enum class DeviceMode : char {
  host = 'H',    // through pinned memory of the host and the CPU's collectives: always possible
  stream = 'S',  // all ranks map memory of all: streams wait for words, kernels for nothing
  kernel = 'K',  // as S, and each rank has a GPU to itself, so that kernels may wait for kernels
};

// What a rank tells the others. Travels as bytes.
struct DeviceCard {
  char uuid[64] = {};
  char wanted = 0;           // a DeviceMode that somebody asked for; 0: any
  char all_reduce[32] = {};  // an algorithm that somebody chose by name
  bool words = false, host_memory = false, descriptors = false, ipc = false;
  int32_t processors = 0;
  int32_t unreached = -1;  // a rank whose GPU this one's cannot address
  // Whether this rank reaches all others through shared memory of its host.
  bool one_host = false;
};
DeviceCard card_of(const DeviceFacts& facts, char wanted, bool one_host,
                   const std::string& all_reduce = "");
bool on_one_gpu(std::span<const DeviceCard> cards);

struct ModeChoice {
  DeviceMode mode = DeviceMode::host;
  std::string reason;  // why this, or why not more: half a sentence that names a rank
};
// By rank. Throws UsageError when ranks were asked for different modes or algorithms.
ModeChoice choose_mode(std::span<const DeviceCard> cards);

}  // namespace pycomm
