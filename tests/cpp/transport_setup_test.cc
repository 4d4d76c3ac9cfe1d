// SPDX-License-Identifier: MIT
// A rank that cannot join tells the others, so that all of them fail soon and name it.
#include <chrono>

#include "check.h"
#include "connections.h"

using namespace pycomm;

namespace {

MeshOptions options_for(const std::string& transports) {
  MeshOptions options;
  options.transports = transports;
  options.socket_interface = std::string("lo");
  options.connect_timeout = std::chrono::seconds(30);
  return options;
}

struct Ended {
  std::string text;
  FailureKind kind = FailureKind::none;
  std::vector<int> ranks;
  double seconds = 0;
};

// Sets up a group of threads; `change` alters the options of a rank. How it ended for each.
std::vector<Ended> set_up(int world_size, const std::string& transports,
                          const std::function<void(int, MeshOptions&)>& change) {
  MemoryStore store;
  std::vector<Ended> ends(static_cast<size_t>(world_size));
  connections::on_threads(world_size, [&](int rank) {
    auto options = options_for(transports);
    change(rank, options);
    auto& end = ends[static_cast<size_t>(rank)];
    const auto began = std::chrono::steady_clock::now();
    try {
      Mesh::connect(store, rank, world_size, options);
    } catch (const CommError& error) {
      end = {error.what(), error.failure().kind, error.failure().ranks, 0};
    } catch (const UsageError& error) {
      end.text = error.what();
    }
    end.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  });
  return ends;
}

void check_all_name(const std::vector<Ended>& ends, int culprit, const std::string& reason) {
  for (size_t rank = 0; rank < ends.size(); ++rank) {
    const auto& end = ends[rank];
    CHECK(end.text.find(reason) != std::string::npos, "rank ", rank, ": ", end.text);
    CHECK(end.seconds < 15, "rank ", rank, " waited ", end.seconds, " s");
    if (rank == static_cast<size_t>(culprit)) continue;
    CHECK(end.text.find(str("rank ", culprit, " (pid ")) != std::string::npos, end.text);
    CHECK(end.ranks == std::vector<int>{culprit}, end.text);
    CHECK(end.text.find(str("set-up on rank ", rank, " of ", ends.size(), ": rank ")) == 0,
          end.text);
  }
}

}  // namespace

TEST("a wrong interface on one rank is raised on all") {
  for (const int culprit : {0, 2}) {
    const auto ends = set_up(3, "tcp", [&](int rank, MeshOptions& options) {
      if (rank == culprit) options.socket_interface = "nosuch0";
    });
    check_all_name(ends, culprit, "PYCOMM_SOCKET_IFNAME=nosuch0 names no interface");
    CHECK(ends[static_cast<size_t>(culprit)].kind == FailureKind::none, "a UsageError there");
  }
}

TEST("a range without a free port on one rank is raised on all") {
  const auto taken = listen_on({"lo", "127.0.0.1", 1, true, true}, {});
  const auto ends = set_up(3, "shm,tcp", [&](int rank, MeshOptions& options) {
    if (rank == 1) options.ports = {taken.port, taken.port};
  });
  check_all_name(ends, 1, str("PYCOMM_PORT_RANGE=", taken.port, "-", taken.port, " are in use"));
}

TEST("a different number of connections on one rank is a mismatch on all") {
  const auto ends = set_up(3, "tcp", [](int rank, MeshOptions& options) {
    options.tcp_connections = rank == 2 ? 4 : 2;
  });
  for (const auto& end : ends) {
    CHECK(end.kind == FailureKind::mismatch && end.seconds < 15, end.text);
    CHECK(end.text.find("tcp connections") != std::string::npos, end.text);
    CHECK(end.text.find("rank 2") != std::string::npos, end.text);
  }
}

TEST("a rank that two others cannot reach is named by those who did reach it too") {
  // Rank 1 publishes a port on which nobody listens any more.
  class Damaged final : public Store {
   public:
    explicit Damaged(Store& inner) : inner_(inner) {}
    void set(const std::string& key, const std::string& value) override {
      auto address = PeerAddress::parse(value);
      address.port = 1;
      inner_.set(key, key == "pycomm/address/1" ? address.serialize() : value);
    }
    std::string get(const std::string& key, Deadline deadline) override {
      return inner_.get(key, deadline);
    }
    bool has(const std::string& key) override { return inner_.has(key); }
    int64_t add(const std::string& key, int64_t amount) override { return inner_.add(key, amount); }

   private:
    Store& inner_;
  };
  MemoryStore shared;
  connections::on_threads(4, [&](int rank) {
    Damaged damaged(shared);
    const auto options = options_for("tcp");
    std::string told;
    const auto began = std::chrono::steady_clock::now();
    try {
      Mesh::connect(rank == 1 ? static_cast<Store&>(damaged) : shared, rank, 4, options);
    } catch (const CommError& error) {
      told = error.what();
      CHECK(error.failure().ranks == std::vector<int>{1}, told);
    }
    CHECK(told.find("cannot connect to rank 1 (pid ") != std::string::npos, rank, ": ", told);
    CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(15));
  });
}

TEST("a rank that goes silently before all are connected is named by those who were") {
  // Its own word does not reach the others: as if its process had been killed.
  class Dying final : public Store {
   public:
    explicit Dying(Store& inner) : inner_(inner) {}
    void set(const std::string& key, const std::string& value) override {
      if (key != "pycomm/failed") inner_.set(key, value);
    }
    std::string get(const std::string& key, Deadline deadline) override {
      return inner_.get(key, deadline);
    }
    bool has(const std::string& key) override { return inner_.has(key); }
    int64_t add(const std::string&, int64_t) override { throw std::runtime_error("killed"); }

   private:
    Store& inner_;
  };
  for (const std::string transports : {"tcp", "shm"}) {
    MemoryStore shared;
    connections::on_threads(3, [&](int rank) {
      Dying dying(shared);
      std::string told;
      try {
        Mesh::connect(rank == 1 ? static_cast<Store&>(dying) : shared, rank, 3,
                      options_for(transports));
      } catch (const std::exception& error) {
        told = error.what();
      }
      if (rank == 1) {
        CHECK(told == "killed", told);
        return;
      }
      CHECK(told.find("rank 1 (pid ") != std::string::npos, told);
      CHECK(
          told.find("closed its connections before all ranks were connected") != std::string::npos,
          told);
    });
  }
}

TEST("hosts that are given the same text share memory, others do not") {
  MemoryStore store;
  connections::on_threads(3, [&](int rank) {
    auto options = options_for("shm,tcp");
    options.host_id = std::string(1, rank == 2 ? 'b' : 'a');
    const auto mesh = Mesh::connect(store, rank, 3, options);
    for (int peer = 0; peer < 3; ++peer) {
      if (peer == rank) continue;
      const bool shares = rank != 2 && peer != 2;
      CHECK(mesh->link(peer).transport == (shares ? "shm" : "tcp"), rank, " ", peer);
    }
  });
}
