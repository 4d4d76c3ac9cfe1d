// SPDX-License-Identifier: MIT
// What ranks publish about themselves, and what is refused of it.
#include <random>

#include "base/error.h"
#include "check.h"
#include "transport/address.h"
#include "transport/mesh.h"

using namespace pycomm;

namespace {

PeerAddress example() {
  PeerAddress address = local_address(3, 8);
  address.transports = "shm,tcp";
  address.segment_bytes = 131072;
  address.slots = 4;
  address.unix_name = "pycomm-abc";
  address.ip = "fe80::1%eth0";
  address.port = 40001;
  address.interface = "eth0=odd";
  return address;
}

std::string refusal(const std::string& text) {
  try {
    PeerAddress::parse(text);
  } catch (const CommError& error) {
    CHECK(error.failure().kind == FailureKind::system);
    return error.what();
  }
  return {};
}

}  // namespace

TEST("an address survives being written and read") {
  const auto before = example();
  const auto after = PeerAddress::parse(before.serialize());
  CHECK(after.serialize() == before.serialize(), after.serialize());
  CHECK(after.rank == 3 && after.world_size == 8 && after.version == kWireVersion);
  CHECK(after.interface == "eth0=odd" && after.ip == before.ip && after.token == before.token);
  CHECK(after.segment_bytes == 131072 && after.port == 40001 && after.pid == before.pid);
}

TEST("unknown fields are left for later versions, a missing version is not this one") {
  CHECK(PeerAddress::parse(example().serialize() + "codec=int8\n").rank == 3);
  CHECK(PeerAddress::parse("rank=1\n").version != kWireVersion);
  CHECK(PeerAddress::parse("").version != kWireVersion);
}

TEST("garbage is refused and quoted") {
  for (const std::string text : {"hello", "rank=three\n", "rank=\n", "rank=99999999999999999999\n",
                                 "port=4x\n", "segment_bytes=-1\n", "rank=1 2\n", "\n\n"}) {
    const auto told = refusal(text);
    CHECK(told.find("cannot understand the address a peer published: '") == 0, text, ": ", told);
  }
}

TEST("random damage is read or refused, and never crashes") {
  constexpr uint64_t kSeed = 9;
  std::mt19937_64 random(kSeed);
  const auto good = example().serialize();
  for (int round = 0; round < 5000; ++round) {
    auto text = good;
    for (auto k = random() % 4 + 1; k > 0; --k) {
      text[random() % text.size()] = static_cast<char>(random());
    }
    text.resize(random() % (text.size() + 1));
    refusal(text);
  }
}

TEST("tokens are random, and only their own hexadecimal form is read back") {
  const auto token = random_token();
  CHECK(token != random_token());
  Token read{};
  CHECK(to_hex(token).size() == 32 && from_hex(to_hex(token), read) && read == token);
  auto text = to_hex(token);
  CHECK(!from_hex(text + "0", read) && !from_hex(text.substr(1), read) && !from_hex("", read));
  text[5] = 'g';
  CHECK(!from_hex(text, read));
}

TEST("a mesh refuses transports it does not know, and peers that do not come are named") {
  MemoryStore store;
  MeshOptions options;
  options.transports = "shm,carrier-pigeon";
  std::string told;
  try {
    Mesh::connect(store, 0, 1, options);
  } catch (const UsageError& error) {
    told = error.what();
  }
  CHECK(told.find("'carrier-pigeon'") != std::string::npos, told);
  options.transports = "shm";
  options.connect_timeout = std::chrono::milliseconds(50);
  MemoryStore another;
  try {
    Mesh::connect(another, 0, 2, options);
  } catch (const CommError& error) {
    told = error.what();
    CHECK(error.failure().kind == FailureKind::timeout && error.failure().ranks[0] == 1, told);
  }
  CHECK(told.find("rank 1 did not publish its address in time") != std::string::npos, told);
}

TEST("ranks whose settings differ find out during set-up") {
  MemoryStore store;
  auto other = local_address(1, 2);
  other.transports = "shm";
  other.segment_bytes = 4096;
  other.slots = kSlots;
  store.set("pycomm/address/1", other.serialize());
  MeshOptions options;
  options.transports = "shm";
  std::string told;
  try {
    Mesh::connect(store, 0, 2, options);
  } catch (const CommError& error) {
    told = error.what();
    CHECK(error.failure().kind == FailureKind::mismatch, told);
  }
  CHECK(told.find("rank 1 has segment bytes 4096, rank 0 has") != std::string::npos, told);
}

TEST("a group of one needs nobody") {
  MemoryStore store;
  const auto mesh = Mesh::connect(store, 0, 1, {});
  CHECK(mesh->world_size() == 1 && mesh->rank() == 0);
  CHECK(Mesh().world_size() == 1);
}
