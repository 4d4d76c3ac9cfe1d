// SPDX-License-Identifier: MIT
// How groups end: shut down, destroyed, aborted, timed out; over shared memory and TCP, ranks as
// threads of one process.
#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#include "groups.h"

using namespace groups;

namespace {

int open_descriptors() {
  int count = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  while (::readdir(folder)) ++count;
  ::closedir(folder);
  return count;
}

}  // namespace

TEST("shutting down twice, idle or by the destructor, is fine") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 2, [&](auto& engine, int rank) {
      if (rank == 0) engine->shutdown("early", false);
      if (rank == 0) engine->shutdown("again", true);
      if (rank == 1) engine.reset();
    });
  }
}

TEST("a forked child that waits for its parent's operation is refused, and runs nothing") {
  with_group({"shm"}, 2, [](auto& engine, int rank) {
    auto memory = tensor(100'000, 1);
    const auto operation = make(Collective::all_reduce, memory);
    if (rank == 1) return engine->run(operation);
    const auto gate = engine->hold_back();  // so that it is in the queue when the child is made
    engine->submit(operation);
    const pid_t child = ::fork();
    if (child == 0) {
      gate->open = true;
      try {
        engine->wait(*operation, {});
      } catch (const UsageError&) {
        ::_exit(0);
      }
      ::_exit(1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status ", status);
    gate->open = true;
    engine->wait(*operation, {});
    check_all(memory, 2, "the parent's");
  });
}

TEST("forked children end whatever locks their parent's threads held") {
  with_group({"shm"}, 2, [](auto& engine, int rank) {
    std::atomic<bool> over{false};
    std::vector<std::thread> busy;
    for (int k = 0; rank == 0 && k < 2; ++k) {
      busy.emplace_back([&] {
        while (!over) {
          engine->hold_back()->open = true;
          engine->skip();
        }
      });
    }
    std::string wrong;
    for (int k = 0; rank == 0 && k < 40 && wrong.empty(); ++k) {
      const pid_t child = ::fork();
      if (child == 0) {
        ::alarm(20);
        engine->skip();
        const bool held = engine->hold_back() != nullptr;
        engine->shutdown("the child's", true);
        ::_exit(held ? 1 : 0);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) wrong = str("status ", status);
    }
    over = true;
    for (auto& one : busy) one.join();
    CHECK(wrong.empty(), "child: ", wrong);
  });
}

TEST("a shutdown fails what is pending, and the others hear who has left") {
  for (const auto& transport : kTransports) {
    std::atomic<bool> left{false};
    with_group({transport}, 3, [&](auto& engine, int rank) {
      auto memory = tensor(1000, 1), unmatched = tensor(10, 1);
      if (rank == 0) {
        const auto collective = make(Collective::all_reduce, memory);
        const auto receive = message(Collective::recv, 1, 9, unmatched);
        engine->submit(collective);
        engine->submit(receive);
        engine->shutdown("leaving", false);
        left = true;
        for (const auto& one : {collective, receive}) {
          const auto failure = failure_of([&] { engine->wait(*one, {}); });
          CHECK(failure.kind == FailureKind::aborted && contains(failure, "closed"), failure.text);
        }
        return;
      }
      // Rank 2 is in the middle of it, rank 1 comes too late.
      while (rank == 1 && !left) std::this_thread::yield();
      // What rank 0 had sent by then may do for the first collective, not for a second.
      Failure failure;
      for (int k = 0; k < 2 && !failure; ++k) {
        failure = failure_of([&] { engine->run(make(Collective::all_reduce, memory)); });
      }
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
