// SPDX-License-Identifier: MIT
#include <charconv>
#include <sstream>

#include "device/fake_device.h"

namespace pycomm {
namespace {

void set(FakeOptions& options, const std::string& entry) {
  const size_t equals = entry.find('=');
  const std::string name = entry.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : entry.substr(equals + 1);
  if (name == "uuid" && !value.empty()) {
    options.uuid = value;
    return;
  }
  uint64_t number = 0;
  const auto read = std::from_chars(value.data(), value.data() + value.size(), number);
  PYCOMM_USAGE(read.ec == std::errc{} && read.ptr == value.data() + value.size(),
               "fake device: cannot read \"", entry,
               "\"; expected uuid=TEXT, or one of words, "
               "host_memory, descriptors, ipc, peer_access, processors, memory_bytes, seed, "
               "delay_us, one_queue =NUMBER");
  if (name == "words") {
    options.words = number;
  } else if (name == "host_memory") {
    options.host_memory = number;
  } else if (name == "descriptors") {
    options.descriptors = number;
  } else if (name == "ipc") {
    options.ipc = number;
  } else if (name == "peer_access") {
    options.peer_access = number;
  } else if (name == "processors") {
    options.processors = static_cast<int>(number);
  } else if (name == "memory_bytes") {
    options.memory_bytes = number;
  } else if (name == "seed") {
    options.seed = number;
  } else if (name == "delay_us") {
    options.delay_us = static_cast<int>(number);
  } else if (name == "one_queue") {
    options.one_queue = number;
  } else {
    throw UsageError(str("fake device: no setting is called \"", name, "\""));
  }
}

}  // namespace

std::vector<FakeOptions> FakeOptions::parse(const std::string& text) {
  std::vector<FakeOptions> all;
  std::stringstream devices(text);
  for (std::string device; std::getline(devices, device, ';');) {
    FakeOptions& options = all.emplace_back();
    std::stringstream entries(device);
    for (std::string entry; std::getline(entries, entry, ',');) set(options, entry);
  }
  return all;
}

}  // namespace pycomm
