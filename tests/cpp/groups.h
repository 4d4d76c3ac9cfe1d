// SPDX-License-Identifier: MIT
// Groups of whole engines whose ranks are threads of this process, and operations on small tensors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "connections.h"
#include "engine/engine.h"

namespace groups {

using namespace pycomm;
using namespace connections;

inline const std::vector<std::string> kTransports{"shm", "tcp"};

inline EngineOptions quick() {
  EngineOptions options;
  options.timeout = std::chrono::seconds(60);  // a bug ends a test instead of hanging it
  return options;
}

// A group whose ranks are threads: body(engine, rank) on each.
template <class Body>
void with_group(const Layout& layout, int world_size, const Body& body, size_t segment_bytes = 0) {
  auto meshes = connect_threads(world_size, layout, segment_bytes);
  std::vector<std::unique_ptr<Engine>> engines;
  for (auto& mesh : meshes) engines.push_back(std::make_unique<Engine>(std::move(mesh), quick()));
  on_threads(world_size, [&](int rank) {
    auto& engine = engines[static_cast<size_t>(rank)];
    try {
      body(engine, rank);
    } catch (...) {
      if (engine) engine->shutdown("a check failed here", false);  // so that nobody waits for it
      throw;
    }
    if (engine) engine->shutdown("the test is over", true);
  });
}

using OperationPtr = std::shared_ptr<Operation>;

inline std::vector<float> tensor(size_t count, float value) {
  return std::vector<float>(count, value);
}

inline OperationPtr make(Collective collective, std::vector<float>& memory) {
  auto operation = std::make_shared<Operation>();
  operation->collective = collective;
  operation->work = {{reinterpret_cast<std::byte*>(memory.data()), memory.size()}};
  return operation;
}
inline OperationPtr message(Collective collective, int peer, int tag, std::vector<float>& memory) {
  auto operation = make(collective, memory);
  operation->peer = peer;
  operation->root = tag;
  return operation;
}
inline void check_all(const std::vector<float>& memory, float value, const std::string& context) {
  for (size_t i = 0; i < memory.size(); ++i) {
    CHECK(memory[i] == value, context, ", element ", i, " is ", memory[i], ", expected ", value);
  }
}

// What waiting for `body` throws.
template <class Body>
Failure failure_of(const Body& body) {
  try {
    body();
  } catch (const CommError& error) {
    return error.failure();
  }
  return {};
}
inline bool contains(const Failure& failure, const std::string& part) {
  return failure.text.find(part) != std::string::npos;
}

}  // namespace groups
