// SPDX-License-Identifier: MIT
// Whole engines, ranks as threads of one process, over shared memory and TCP: the target of the
// thread sanitizer.
#include <dirent.h>

#include <cstdio>
#include <random>

#include "check.h"
#include "collective_data.h"
#include "connections.h"
#include "engine/engine.h"

using namespace pycomm;
using namespace connections;
using data::Case;
using data::RankData;

namespace {

constexpr uint64_t kSeed = 31337;
const std::vector<std::string> kTransports{"shm", "tcp"};

EngineOptions quick() {
  EngineOptions options;
  options.timeout = std::chrono::seconds(60);  // a bug ends a test instead of hanging it
  return options;
}

// A group whose ranks are threads: body(engine, rank) on each.
template <class Body>
void with_group(const std::vector<std::string>& transports, int world_size, const Body& body,
                size_t segment_bytes = 0) {
  auto meshes = connect_threads(world_size, transports, segment_bytes);
  std::vector<std::unique_ptr<Engine>> engines;
  for (auto& mesh : meshes) engines.push_back(std::make_unique<Engine>(std::move(mesh), quick()));
  on_threads(world_size, [&](int rank) {
    auto& engine = engines[static_cast<size_t>(rank)];
    body(engine, rank);
    if (engine) engine->shutdown("the test is over", true);
  });
}

using OperationPtr = std::shared_ptr<Operation>;

std::vector<float> tensor(size_t count, float value) { return std::vector<float>(count, value); }

OperationPtr make(Collective collective, std::vector<float>& memory) {
  auto operation = std::make_shared<Operation>();
  operation->collective = collective;
  operation->work = {{reinterpret_cast<std::byte*>(memory.data()), memory.size()}};
  return operation;
}
OperationPtr message(Collective collective, int peer, int tag, std::vector<float>& memory) {
  auto operation = make(collective, memory);
  operation->peer = peer;
  operation->root = tag;
  return operation;
}
void check_all(const std::vector<float>& memory, float value, const std::string& context) {
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
bool contains(const Failure& failure, const std::string& part) {
  return failure.text.find(part) != std::string::npos;
}

int open_descriptors() {
  int count = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  while (::readdir(folder)) ++count;
  ::closedir(folder);
  return count;
}

}  // namespace

TEST("synchronous collectives are right on 2 to 5 ranks over both transports") {
  for (const auto& transport : kTransports) {
    for (int p = 2; p <= 5; ++p) {
      with_group({transport}, p, [&](auto& engine, int rank) {
        std::mt19937_64 random(kSeed);
        for (int k = 0; k < 40; ++k) {
          const auto collective =
              static_cast<Collective>(random() % static_cast<uint64_t>(Collective::send));
          const auto choices = data::arithmetic_for(collective);
          const auto [op, dtype] = choices[random() % choices.size()];
          const int root = static_cast<int>(random() % static_cast<unsigned>(p));
          const size_t count = random() % (k % 8 == 0 ? 40000 : 500);
          RankData memory({collective, p, root, op, dtype, count, false, k}, rank);
          // The engine takes shared operations; this one dies with `memory`.
          engine->run({std::shared_ptr<void>(), &memory.operation});
          CHECK(memory.wrong().empty(), memory.wrong(), ", seed ", kSeed);
        }
      });
    }
  }
}

TEST("collectives cross hosts: two levels within and between, uneven hosts too") {
  for (const auto& hosts : {std::vector<int>{0, 0, 1, 1}, {0, 1, 1, 2, 0}}) {
    const int p = static_cast<int>(hosts.size());
    with_group({"shm,tcp", hosts}, p, [&](auto& engine, int) {
      for (const size_t count : {1, 100, 10000, 300000}) {
        CHECK(count < 10000 ||
              engine->algorithm_for(Collective::all_reduce, count * 4) == "hierarchical");
        auto memory = tensor(count, 3);
        engine->run(make(Collective::all_reduce, memory));
        check_all(memory, static_cast<float>(3 * p), "hosts");
      }
    });
  }
}

TEST("asynchronous collectives submitted by several threads of each rank are all carried out") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 3, [&](auto& engine, int) {
      on_threads(3, [&](int) {
        std::vector<std::vector<float>> memory(20, tensor(300, 2));
        std::vector<OperationPtr> operations;
        for (auto& one : memory) {
          operations.push_back(make(Collective::all_reduce, one));
          engine->submit(operations.back());
        }
        for (size_t k = 0; k < memory.size(); ++k) {
          engine->wait(*operations[k], {});
          check_all(memory[k], 6, transport);
        }
      });
    });
  }
}

TEST("synchronous and asynchronous collectives keep their order") {
  with_group({"shm"}, 4, [&](auto& engine, int rank) {
    for (int k = 0; k < 100; ++k) {
      auto first = tensor(64, 1), second = tensor(5000, static_cast<float>(rank));
      const auto queued = make(Collective::all_reduce, first);
      engine->submit(queued);
      engine->run(make(Collective::all_reduce, second));
      engine->wait(*queued, {});
      check_all(first, 4, "queued");
      check_all(second, 6, "synchronous");
    }
  });
}

TEST("messages are matched by tag, whatever the order of the receives") {
  for (const auto& transport : kTransports) {
    with_group(
        {transport}, 2,
        [&](auto& engine, int rank) {
          constexpr int kTags = 12;
          if (rank == 0) {
            for (int tag = 0; tag < kTags; ++tag) {
              auto memory = tensor(static_cast<size_t>(tag) * 200, static_cast<float>(tag));
              engine->run(message(Collective::send, 1, tag, memory));
            }
          } else {
            for (int tag = kTags - 1; tag >= 0; --tag) {
              auto memory = tensor(static_cast<size_t>(tag) * 200, -1);
              engine->run(message(Collective::recv, 0, tag, memory));
              check_all(memory, static_cast<float>(tag), transport);
            }
          }
        },
        1024);
  }
}

TEST("messages of one tag arrive in the order of their sends, many outstanding both ways") {
  for (const auto& transport : kTransports) {
    with_group(
        {transport}, 3,
        [&](auto& engine, int rank) {
          constexpr int kMessages = 60;
          std::vector<std::vector<float>> memory;
          memory.reserve(4 * kMessages);
          std::vector<OperationPtr> receives, sends;
          for (int k = 0; k < kMessages; ++k) {
            for (int peer = 0; peer < 3; ++peer) {
              if (peer == rank) continue;
              const auto count = static_cast<size_t>(k * 37 % 900);
              memory.push_back(tensor(count, static_cast<float>(1000 * rank + k)));
              sends.push_back(message(Collective::send, peer, 0, memory.back()));
              engine->submit(sends.back());
              memory.push_back(tensor(count, -1));
              receives.push_back(message(Collective::recv, peer, 0, memory.back()));
              engine->submit(receives.back());
            }
          }
          for (const auto& one : sends) engine->wait(*one, {});
          for (size_t k = 0; k < receives.size(); ++k) {
            engine->wait(*receives[k], {});
            check_all(memory[2 * k + 1],
                      static_cast<float>(1000 * receives[k]->peer + static_cast<int>(k) / 2),
                      transport);
          }
        },
        1024);
  }
}

TEST("a receive from any source takes each message once and says whose it was") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 4, [&](auto& engine, int rank) {
      if (rank != 0) {
        for (int k = 0; k < 30; ++k) {
          auto memory = tensor(10, static_cast<float>(rank));
          engine->run(message(Collective::send, 0, 5, memory));
        }
        return;
      }
      std::vector<int> seen(4);
      for (int k = 0; k < 90; ++k) {
        auto memory = tensor(10, 0);
        const auto operation = message(Collective::recv, kAnySource, 5, memory);
        engine->run(operation);
        ++seen[static_cast<size_t>(operation->source)];
        check_all(memory, static_cast<float>(operation->source), transport);
      }
      CHECK((seen == std::vector<int>{0, 30, 30, 30}));
    });
  }
}

TEST("messages and collectives of several threads do not wait for each other") {
  // Ranks 0 and 1 share memory and reach rank 2 by TCP, so they sleep on sockets.
  for (const auto& transports :
       {std::vector<std::string>{"shm"}, {"tcp"}, {"shm,tcp", "shm,tcp", "tcp"}}) {
    with_group(transports, 3, [&](auto& engine, int rank) {
      const int next = (rank + 1) % 3, previous = (rank + 2) % 3;
      on_threads(3, [&](int thread) {
        for (int k = 0; k < 60; ++k) {
          if (thread == 0) {
            auto memory = tensor(static_cast<size_t>(k) * 50, 1);
            engine->run(make(Collective::all_reduce, memory));
            check_all(memory, 3, "collective");
          } else if (thread == 1) {
            auto sent = tensor(500, static_cast<float>(rank)), got = tensor(500, -1);
            const auto receive = message(Collective::recv, previous, 1, got);
            engine->submit(receive);
            engine->run(message(Collective::send, next, 1, sent));
            engine->wait(*receive, {});
            check_all(got, static_cast<float>(previous), "message");
          } else {
            auto sent = tensor(20, static_cast<float>(k)), got = tensor(20, -1);
            const auto send = message(Collective::send, previous, 2, sent);
            engine->submit(send);
            engine->run(message(Collective::recv, next, 2, got));
            engine->wait(*send, {});
            check_all(got, static_cast<float>(k), "message back");
          }
        }
      });
    });
  }
}

TEST("callbacks run once, and before() and after() enclose the operation") {
  with_group({"shm"}, 2, [&](auto& engine, int) {
    std::vector<float> memory(8);
    std::atomic<int> calls{0};
    const auto operation = make(Collective::all_reduce, memory);
    operation->before = [&] { memory.assign(8, 1); };
    operation->after = [&] { memory[0] *= 10; };
    operation->on_finished = [&](Operation& one) { calls += one.finished() ? 1 : 100; };
    engine->submit(operation);
    engine->wait(*operation, {});
    CHECK(memory[0] == 20 && memory[1] == 2);
    const auto deadline = Deadline::after(std::chrono::seconds(10));
    while (calls == 0 && !deadline.expired()) std::this_thread::yield();
    CHECK(calls == 1, calls.load());
  });
}

TEST("shutting down twice, idle or by the destructor, is fine") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 2, [&](auto& engine, int rank) {
      if (rank == 0) engine->shutdown("early", false);
      if (rank == 0) engine->shutdown("again", true);
      if (rank == 1) engine.reset();
    });
  }
}

TEST("a shutdown fails what is pending, and the others hear who has left") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 3, [&](auto& engine, int rank) {
      auto memory = tensor(1000, 1), unmatched = tensor(10, 1);
      if (rank == 0) {
        const auto collective = make(Collective::all_reduce, memory);
        const auto receive = message(Collective::recv, 1, 9, unmatched);
        engine->submit(collective);
        engine->submit(receive);
        engine->shutdown("leaving", false);
        for (const auto& one : {collective, receive}) {
          const auto failure = failure_of([&] { engine->wait(*one, {}); });
          CHECK(failure.kind == FailureKind::aborted && contains(failure, "closed"), failure.text);
        }
        return;
      }
      const auto failure = failure_of([&] { engine->run(make(Collective::all_reduce, memory)); });
      CHECK(
          failure.kind == FailureKind::peer_failure && contains(failure, "left the group: leaving"),
          transport, ": ", failure.text);
      CHECK(failure.ranks == std::vector<int>{0}, failure.text);
    });
  }
}

TEST("an engine that is destroyed early makes the others raise, in collectives and in messages") {
  for (const auto& transport : kTransports) {
    for (const bool messages : {false, true}) {
      with_group({transport}, 3, [&](auto& engine, int rank) {
        if (rank == 2) return engine.reset();
        auto memory = tensor(100, 1);
        const auto operation = messages ? message(Collective::recv, 2, 0, memory)
                                        : make(Collective::all_reduce, memory);
        const auto failure = failure_of([&] { engine->run(operation); });
        CHECK(failure.kind == FailureKind::peer_failure && failure.ranks == std::vector<int>{2},
              transport, ": ", failure.text);
      });
    }
  }
}

TEST("an abort reaches every rank with its reason, and later calls repeat it") {
  with_group({"shm"}, 3, [&](auto& engine, int rank) {
    auto memory = tensor(100, 1);
    if (rank == 1) engine->abort("enough");
    for (int k = 0; k < 2; ++k) {
      const auto failure = failure_of([&] { engine->run(make(Collective::all_reduce, memory)); });
      CHECK(failure.kind == FailureKind::aborted && contains(failure, "aborted by rank 1: enough"),
            failure.text);
    }
  });
}

TEST("a timeout names the rank that did not come, on every rank") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 2, [&](auto& engine, int rank) {
      auto memory = tensor(100, 1);
      const auto operation = make(Collective::all_reduce, memory);
      operation->timeout = std::chrono::milliseconds(150);
      if (rank == 1) {
        while (!engine->failure()) std::this_thread::yield();
      }
      const auto failure = failure_of([&] { engine->run(operation); });
      CHECK(failure.kind == FailureKind::timeout && contains(failure, "waiting for rank 1"),
            failure.text);
    });
  }
}

TEST("waiting for a while does not end the operation") {
  with_group({"shm"}, 2, [&](auto& engine, int rank) {
    auto memory = tensor(100, 1), other = tensor(1, 0);
    const auto operation = make(Collective::all_reduce, memory);
    if (rank == 0) {
      engine->submit(operation);
      const auto failure =
          failure_of([&] { engine->wait(*operation, std::chrono::milliseconds(30)); });
      CHECK(failure.kind == FailureKind::timeout && contains(failure, "goes on"), failure.text);
      engine->run(message(Collective::send, 1, 0, other));
    } else {
      engine->run(message(Collective::recv, 0, 0, other));
      engine->submit(operation);
    }
    engine->wait(*operation, {});
    check_all(memory, 2, "after a wait in vain");
  });
}

TEST("hundreds of groups leave no descriptor behind") {
  const auto once = [](const std::string& transport) {
    with_group({transport}, 2, [&](auto& engine, int) {
      auto memory = tensor(10, 1);
      engine->run(make(Collective::all_reduce, memory));
      check_all(memory, 2, transport);
    });
  };
  for (const auto& transport : kTransports) once(transport);
  const int before = open_descriptors();
  for (int k = 0; k < 100; ++k) {
    for (const auto& transport : kTransports) once(transport);
  }
  CHECK(open_descriptors() == before, before, " descriptors before, ", open_descriptors(),
        " after");
}
