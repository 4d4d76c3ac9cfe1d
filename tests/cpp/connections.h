// SPDX-License-Identifier: MIT
// Two ends of a connection over every transport there is, for tests that hold for all of them.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "transport/faulty.h"
#include "transport/loopback.h"
#include "transport/mesh.h"

namespace connections {

using namespace pycomm;

// Runs body(0) ... body(count - 1) on a thread each; the first exception comes out here.
inline void on_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      try {
        body(i);
      } catch (...) {
        errors[static_cast<size_t>(i)] = std::current_exception();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// The group's store as a rank sees it that believes others to be on other hosts: `hosts` by rank.
class HostsStore final : public Store {
 public:
  HostsStore(Store& inner, std::vector<int> hosts, int rank)
      : inner_(inner), hosts_(std::move(hosts)), rank_(static_cast<size_t>(rank)) {}
  void set(const std::string& key, const std::string& value) override { inner_.set(key, value); }
  std::string get(const std::string& key, Deadline deadline) override {
    const auto value = inner_.get(key, deadline);
    const std::string prefix = "pycomm/address/";
    if (key.rfind(prefix, 0) != 0) return value;
    auto address = PeerAddress::parse(value);
    const int host = hosts_[static_cast<size_t>(address.rank)];
    if (host != hosts_[rank_]) address.host_id = str("host ", host);
    return address.serialize();
  }
  bool has(const std::string& key) override { return inner_.has(key); }
  int64_t add(const std::string& key, int64_t amount) override { return inner_.add(key, amount); }

 private:
  Store& inner_;
  std::vector<int> hosts_;
  size_t rank_;
};

// How the ranks of a group are joined; `hosts` by rank, or nothing when all share one.
struct Layout {
  std::string transports;
  std::vector<int> hosts = {};
};

// All ranks of a group as threads of this process.
inline std::vector<std::unique_ptr<Mesh>> connect_threads(int world_size, const Layout& layout,
                                                          size_t segment_bytes = 0,
                                                          int tcp_connections = kTcpConnections) {
  MemoryStore shared;
  std::vector<int> hosts = layout.hosts;
  hosts.resize(static_cast<size_t>(world_size));
  std::vector<std::unique_ptr<Mesh>> meshes(static_cast<size_t>(world_size));
  on_threads(world_size, [&](int rank) {
    HostsStore store(shared, hosts, rank);
    MeshOptions options;
    options.transports = layout.transports;
    options.socket_interface = "lo";
    options.segment_bytes = segment_bytes;
    options.tcp_connections = tcp_connections;
    options.connect_timeout = std::chrono::seconds(30);
    meshes[static_cast<size_t>(rank)] = Mesh::connect(store, rank, world_size, options);
  });
  return meshes;
}

// A store for processes: one file a key, in a folder of its own.
class FileStore final : public Store {
 public:
  FileStore() {
    char name[] = "/tmp/pycomm_store_XXXXXX";
    if (!::mkdtemp(name)) throw_system("mkdtemp");
    folder_ = name;
  }
  ~FileStore() override { std::filesystem::remove_all(folder_); }
  void set(const std::string& key, const std::string& value) override {
    const auto path = path_of(key);
    std::ofstream(path + ".part") << value;
    std::rename((path + ".part").c_str(), path.c_str());
  }
  std::string get(const std::string& key, Deadline deadline) override {
    while (true) {
      std::ifstream in(path_of(key));
      if (in) {
        std::ostringstream text;
        text << in.rdbuf();
        return text.str();
      }
      if (deadline.expired()) throw CommError({FailureKind::timeout, "no " + key, {}});
      ::usleep(1000);
    }
  }
  bool has(const std::string& key) override { return ::access(path_of(key).c_str(), F_OK) == 0; }
  // Every count is a file that exactly one process can make.
  int64_t add(const std::string& key, int64_t amount) override {
    int64_t count = 0;
    while (amount > 0) {
      const auto path = path_of(str(key, "_", ++count));
      if (!Fd(::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600))) continue;
      --amount;
    }
    return count;
  }

 private:
  std::string path_of(const std::string& key) const {
    std::string name = key;
    for (char& c : name) c = c == '/' ? '_' : c;
    return folder_ + "/" + name;
  }
  std::string folder_;
};

struct Connection {
  std::string name;
  Channel* ends[2][kLanes] = {};
  bool threads = false;  // the ends may be used by different threads
  std::vector<std::unique_ptr<Mesh>> meshes;
  std::vector<std::unique_ptr<Channel>> channels;

  Channel& end(int side, Lane lane = Lane::collective) const {
    return *ends[side][static_cast<int>(lane)];
  }
};

inline Connection make_loopback(size_t segment_bytes, FaultPlan faults) {
  Connection made;
  made.name = faults.delay_every ? "loopback with delays" : "loopback";
  for (int lane = 0; lane < kLanes; ++lane) {
    auto [a, b] = make_loopback_pair(kSlots, segment_bytes);
    made.channels.push_back(make_faulty(std::move(a), faults, 1));
    made.ends[0][lane] = made.channels.back().get();
    made.channels.push_back(make_faulty(std::move(b), faults, 0));
    made.ends[1][lane] = made.channels.back().get();
  }
  return made;
}

inline Connection make_connected(const std::string& transport, size_t segment_bytes,
                                 int tcp_connections) {
  Connection made;
  made.name = transport == "tcp" ? str("tcp with ", tcp_connections, " connections") : transport;
  made.threads = true;
  made.meshes = connect_threads(2, {transport}, segment_bytes, tcp_connections);
  for (int side = 0; side < 2; ++side) {
    for (int lane = 0; lane < kLanes; ++lane) {
      made.ends[side][lane] =
          &made.meshes[static_cast<size_t>(side)]->channel(1 - side, static_cast<Lane>(lane));
    }
  }
  return made;
}

inline void for_each_transport(size_t segment_bytes,
                               const std::function<void(const Connection&)>& body) {
  FaultPlan delays;
  delays.delay_every = 3;
  body(make_loopback(segment_bytes, {}));
  body(make_loopback(segment_bytes, delays));
  body(make_connected("shm", segment_bytes, 1));
  for (const int connections : {1, 2, 3}) body(make_connected("tcp", segment_bytes, connections));
}

// Reproducible bytes: frame `number` of a stream is a window into them.
inline const std::vector<std::byte>& noise() {
  static const std::vector<std::byte> bytes = [] {
    std::vector<std::byte> made(1 << 20);
    uint64_t state = 88172645463325252u;
    for (auto& one : made) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      one = static_cast<std::byte>(state >> 32);
    }
    return made;
  }();
  return bytes;
}
inline const std::byte* noise_of(uint64_t number, size_t bytes) {
  return noise().data() + number * 7919 % (noise().size() - bytes);
}

}  // namespace connections
