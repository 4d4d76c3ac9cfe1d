// SPDX-License-Identifier: MIT
#include "engine/device_rendezvous.h"

#include "base/log.h"
#include "transport/handshake.h"
#include "transport/unix_socket.h"

namespace pycomm {
namespace {

struct Verdict {
  bool failed = false;
  char text[500] = {};
};

struct Doorplate {
  Token token{};
  char name[64] = {};
};

}  // namespace

void DeviceRendezvous::gather_bytes(const void* mine, void* all, size_t bytes) {
  auto operation = std::make_shared<Operation>();
  operation->collective = Collective::all_gather;
  operation->dtype = DType::uint8;
  auto* out = static_cast<std::byte*>(all);
  for (int rank = 0; rank < engine_.mesh().world_size(); ++rank, out += bytes) {
    operation->work.push_back({out, bytes});
  }
  std::vector<std::byte> copy(bytes);  // chunks are not const
  std::memcpy(copy.data(), mine, bytes);
  operation->work.push_back({copy.data(), bytes});
  engine_.run(operation);
}

std::string DeviceRendezvous::agree(const Failure& mine) {
  Verdict verdict;
  verdict.failed = static_cast<bool>(mine);
  mine.text.copy(verdict.text, sizeof verdict.text - 1);
  const auto verdicts = gather(verdict);
  for (size_t rank = 0; rank < verdicts.size(); ++rank) {
    if (verdicts[rank].failed) return str("rank ", rank, ": ", verdicts[rank].text);
  }
  return {};
}

bool DeviceRendezvous::lost() {
  std::vector<int> peers;
  for (int peer = 0; peer < engine_.mesh().world_size(); ++peer) {
    if (peer != engine_.mesh().rank()) peers.push_back(peer);
  }
  return static_cast<bool>(engine_.look_after(peers, vigil_));
}

Failure DeviceRendezvous::pass(const std::vector<int>& descriptors,
                               std::vector<std::vector<Fd>>* passed) {
  const int rank = engine_.mesh().rank(), world_size = engine_.mesh().world_size();
  Doorplate mine;
  mine.token = random_token();
  const std::string name = random_unix_name();
  name.copy(mine.name, sizeof mine.name - 1);
  Fd listener;
  Failure failure;
  try {
    listener = listen_unix(name);
  } catch (const CommError& error) {
    failure = error.failure();
  }
  const auto doors = gather(mine);
  if (const auto why = agree(failure); !why.empty()) return {FailureKind::system, why, {}};
  passed->clear();
  passed->resize(static_cast<size_t>(world_size));
  try {
    // Held until all have been read: a peer must not find an end that is closed already.
    std::vector<Fd> sockets;
    for (int peer = 0; peer < world_size; ++peer) {
      if (peer == rank) continue;
      const Doorplate& door = doors[static_cast<size_t>(peer)];
      Fd socket = connect_unix(door.name);
      if (!socket)
        throw_system(str("cannot reach rank ", peer, " through unix socket @", door.name));
      Hello hello;
      hello.rank = rank;
      hello.token = door.token;
      send_hello(socket.get(), hello, descriptors);
      sockets.push_back(std::move(socket));
    }
    const auto refused = [rank](const std::string& why) {
      log(LogLevel::warning, rank, "refused a connection while devices were set up: " + why);
    };
    const Patience patience(Deadline::after(kDeviceSetupTimeout), [this] {
      if (const auto why = engine_.failure()) throw CommError(why);
    });
    for (auto& greeting : accept_greetings(
             listener.get(), mine.token, static_cast<size_t>(world_size) - 1, patience, refused)) {
      passed->at(static_cast<size_t>(greeting.hello.rank)) = std::move(greeting.passed);
    }
  } catch (const CommError& error) {
    failure = error.failure();
  } catch (const std::out_of_range&) {
    failure = {FailureKind::system, "a caller gave a rank that is not in the group", {}};
  }
  const auto why = agree(failure);
  return why.empty() ? Failure{} : Failure{FailureKind::system, why, {}};
}

}  // namespace pycomm
