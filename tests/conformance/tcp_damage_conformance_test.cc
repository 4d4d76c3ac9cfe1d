// SPDX-License-Identifier: MIT
// A TCP channel whose other end is a raw socket in the test's hands: damaged, bogus, cut and
// repeated frames are refused, and nothing in a header can make the channel read or write where it
// must not.
#include <sys/socket.h>

#include <cstring>
#include <random>

#include "check.h"
#include "connections.h"
#include "transport/tcp_channel.h"

using namespace pycomm;
using namespace connections;

namespace {

constexpr size_t kSegment = 256;
constexpr size_t kHeader = sizeof(TcpFrameHeader);
constexpr uint64_t kSeed = 1969;

struct Wire {
  Fd raw;
  std::unique_ptr<TcpChannel> channel;
  int channel_fd = -1;
  mutable bool landed = false;  // the last frame's payload lay where the caller wanted it

  explicit Wire(size_t segment_bytes = kSegment) {
    int pair[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    raw = Fd(pair[0]);
    channel_fd = pair[1];
    std::vector<Fd> sockets;
    sockets.emplace_back(pair[1]);
    channel = std::make_unique<TcpChannel>(std::move(sockets), 2, "rank 2 at 10.0.0.7 (eth0)",
                                           segment_bytes);
  }
  void write(const std::string& bytes) const {
    CHECK(::send(raw.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(bytes.size()));
  }
  std::string read(size_t most = 1 << 16) const {
    std::string bytes(most, 0);
    const auto got = ::recv(raw.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return bytes;
  }
  // The next frame as a string; "nothing" or "refused: why" otherwise. With `into`, memory for a
  // frame with that header.
  std::string peek(const FrameHeader& expected = {}, std::byte* into = nullptr) const {
    ReceivedFrame frame;
    try {
      if (!channel->try_peek_into(frame, expected, into)) return "nothing";
    } catch (const CommError& error) {
      CHECK(error.failure().kind == FailureKind::peer_failure);
      CHECK(error.failure().ranks == std::vector<int>{2});
      return str("refused: ", error.what());
    }
    CHECK(frame.header.payload_bytes <= channel->payload_bytes_max(), frame.header.payload_bytes);
    landed = frame.payload == into;
    return std::string(reinterpret_cast<const char*>(frame.payload), frame.header.payload_bytes);
  }
};

FrameHeader header_of(const std::string& payload) {
  return {static_cast<uint32_t>(payload.size()), 0, {1, 2, 3, 4}};
}

// The bytes that a channel puts on the wire for these payloads.
std::string bytes_of(const std::vector<std::string>& payloads) {
  Wire wire;
  std::string bytes;
  for (const auto& payload : payloads) {
    std::byte* room = wire.channel->try_reserve(payload.size());
    CHECK(room != nullptr);
    std::memcpy(room, payload.data(), payload.size());
    wire.channel->commit(header_of(payload));
    bytes += wire.read();
  }
  return bytes;
}

bool refused(const std::string& text, const std::string& part = "") {
  return text.find("refused: the connection to rank 2 at 10.0.0.7 (eth0) is lost: ") == 0 &&
         text.find(part) != std::string::npos;
}

const std::string kPayload = "a payload of thirty-eight bytes, or so";

}  // namespace

TEST("frames that arrive byte by byte are put together") {
  const auto bytes = bytes_of({kPayload, "", "x"});
  CHECK(bytes.size() == 3 * kHeader + kPayload.size() + 1);
  Wire wire;
  for (size_t i = 0; i < kHeader + kPayload.size(); ++i) {
    CHECK(wire.peek() == "nothing", i);
    wire.write(bytes.substr(i, 1));
  }
  CHECK(wire.peek() == kPayload);
  wire.channel->consume();
  wire.write(bytes.substr(kHeader + kPayload.size()));
  CHECK(wire.peek().empty());
  wire.channel->consume();
  CHECK(wire.peek() == "x");
}

TEST("frames cut in two anywhere are put together, where the receiver wants them") {
  const std::string second(kSegment, 'z');
  const auto bytes = bytes_of({kPayload, second});
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    Wire wire;
    std::string memory(kSegment, 0);
    auto* const into = reinterpret_cast<std::byte*>(memory.data());
    wire.write(bytes.substr(0, cut));
    const auto early = wire.peek(header_of(kPayload), into);
    CHECK(early == (cut < kHeader + kPayload.size() ? "nothing" : kPayload), cut);
    if (early == kPayload) {
      wire.channel->consume();
      // A frame is looked at without a place for it once, and wanted somewhere afterwards.
      CHECK(wire.peek() == (cut < bytes.size() ? "nothing" : second), cut);
    }
    wire.write(bytes.substr(cut));
    if (early != kPayload) {
      CHECK(wire.peek(header_of(kPayload), into) == kPayload && wire.landed, cut);
      CHECK(memory.compare(0, kPayload.size(), kPayload) == 0, cut);
      wire.channel->consume();
    }
    CHECK(wire.peek(header_of(second), into) == second, cut);
    wire.channel->consume();
    CHECK(wire.peek() == "nothing", cut);
  }
}

TEST("memory for one frame is not touched by another, nor by one that is damaged in its header") {
  const auto good = bytes_of({kPayload});
  const std::string untouched(kSegment, '-');
  const auto try_into = [&](const std::string& bytes, const FrameHeader& expected) {
    Wire wire;
    std::string memory = untouched;
    wire.write(bytes);
    const auto told = wire.peek(expected, reinterpret_cast<std::byte*>(memory.data()));
    CHECK(memory == untouched);
    return told;
  };
  auto other = header_of(kPayload);
  other.tag[3] = 5;
  CHECK(try_into(good, other) == kPayload);
  other = header_of(kPayload);
  other.number = 1;
  CHECK(try_into(good, other) == kPayload);
  for (size_t byte = 0; byte < kHeader; ++byte) {
    if (byte >= offsetof(TcpFrameHeader, crc) && byte < offsetof(TcpFrameHeader, number)) continue;
    auto damaged = good;
    damaged[byte] = static_cast<char>(damaged[byte] ^ 0x40);
    const auto told = try_into(damaged, header_of(kPayload));
    CHECK(refused(told) || told == "nothing", byte, ": ", told);
  }
  // Damage to the payload shows when it has come, wherever it went.
  Wire wire;
  auto damaged = good;
  damaged.back() ^= 1;
  std::string memory = untouched;
  wire.write(damaged);
  const auto told = wire.peek(header_of(kPayload), reinterpret_cast<std::byte*>(memory.data()));
  CHECK(refused(told, "CRC-32C"), told);
}

TEST("a frame that the kernel takes in pieces goes on where it stopped") {
  // Steps of all sizes end in the header, at its end and in the payload.
  constexpr size_t kBytes = 600'000;
  std::string payload(kBytes, 0);
  for (size_t i = 0; i < kBytes; ++i) payload[i] = static_cast<char>(i * i >> 3);
  const auto* const from = reinterpret_cast<const std::byte*>(payload.data());
  for (const size_t step : {size_t{1} << 16, size_t{9999}, size_t{1} << 12}) {
    Wire wire(kBytes), other(kBytes);
    const int small = 4096;
    ::setsockopt(wire.channel_fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    std::string bytes;
    int tries = 0;
    for (int frame = 0; frame < 2; ++frame) {
      for (; !wire.channel->try_send(header_of(payload), from); ++tries) {
        bytes += wire.read(step);
      }
    }
    CHECK(tries > 2, "the kernel took everything at once, so nothing was tested");
    while (bytes.size() < 2 * (kHeader + kBytes)) bytes += wire.read(step);
    for (int frame = 0; frame < 2; ++frame) {
      std::string told = "nothing";
      for (size_t at = frame * (kHeader + kBytes); told == "nothing"; at += step) {
        other.write(bytes.substr(at, std::min(step, (frame + 1) * (kHeader + kBytes) - at)));
        told = other.peek();
      }
      CHECK(told == payload, "step ", step);
      other.channel->consume();
    }
  }
}

TEST("every single damaged bit is noticed before the frame is handed out") {
  const auto good = bytes_of({kPayload});
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    auto damaged = good;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    Wire wire;
    wire.write(damaged);
    auto told = wire.peek();
    if (told == "nothing") {  // a longer payload was announced; let it come
      wire.write(std::string(kSegment, 'z'));
      told = wire.peek();
    }
    CHECK(refused(told), "bit ", bit, ": ", told);
  }
}

TEST("a payload larger than a segment is refused by its header alone") {
  const auto good = bytes_of({kPayload});
  const size_t at = offsetof(TcpFrameHeader, frame) + offsetof(FrameHeader, payload_bytes);
  for (const uint32_t size : {uint32_t{kSegment + 1}, uint32_t{1} << 31, ~uint32_t{0}}) {
    auto bogus = good;
    std::memcpy(bogus.data() + at, &size, sizeof(size));
    Wire wire;
    wire.write(bogus.substr(0, kHeader));
    CHECK(refused(wire.peek(), str(size, " bytes")), size);
  }
}

TEST("repeated and skipped frames are refused") {
  const auto first = bytes_of({kPayload});
  const auto both = bytes_of({kPayload, "second"});
  Wire repeated;
  repeated.write(first + first);
  CHECK(repeated.peek() == kPayload);
  repeated.channel->consume();
  CHECK(refused(repeated.peek(), "frame 1 has a damaged header (number 0"));
  Wire skipped;
  skipped.write(both.substr(first.size()));
  CHECK(refused(skipped.peek(), "frame 0 has a damaged header (number 1"));
}

TEST("a connection cut anywhere in a frame is an error, between frames too") {
  const auto good = bytes_of({kPayload});
  for (size_t cut = 0; cut < good.size(); ++cut) {
    Wire wire;
    wire.write(good.substr(0, cut));
    CHECK(cut == 0 || wire.peek() == "nothing");
    wire.raw.reset();
    CHECK(refused(wire.peek(), "the peer closed it"), cut);
  }
}

TEST("sending to an end that is gone is an error and no signal") {
  Wire wire;
  wire.raw.reset();
  std::string told;
  try {
    for (int k = 0; k < 10; ++k) {
      if (wire.channel->try_reserve(10)) wire.channel->commit({10, 0, {}});
    }
  } catch (const CommError& error) {
    told = error.what();
  }
  CHECK(told.find("rank 2 at 10.0.0.7 (eth0)") != std::string::npos, told);
}

TEST("random garbage is refused, whatever it looks like") {
  std::mt19937_64 random(kSeed);
  const auto good = bytes_of({kPayload, "x", std::string(kSegment, 'y')});
  for (int round = 0; round < 3000; ++round) {
    // Either noise, or good bytes with several damaged ones.
    std::string bytes = round % 2 ? good : std::string(kHeader + random() % 300, 0);
    if (round % 2 == 0) {
      for (auto& one : bytes) one = static_cast<char>(random());
    } else {
      for (auto k = random() % 5 + 1; k > 0; --k) {
        bytes[random() % bytes.size()] = static_cast<char>(random());
      }
    }
    Wire wire;
    wire.write(bytes);
    for (int frame = 0; frame < 3; ++frame) {
      const auto told = wire.peek();
      if (refused(told) || told == "nothing") break;
      const std::vector<std::string> expected{kPayload, "x", std::string(kSegment, 'y')};
      CHECK(told == expected[static_cast<size_t>(frame)], "seed ", kSeed, ", round ", round);
      wire.channel->consume();
    }
  }
}
