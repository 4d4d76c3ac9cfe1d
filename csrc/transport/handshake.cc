// SPDX-License-Identifier: MIT
#include "transport/handshake.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "transport/socket_address.h"

namespace pycomm {
namespace {

constexpr int kDescriptorsMax = 4;
constexpr size_t kStrangersMax = 256;  // sockets that have not said hello yet
constexpr auto kStrangerPatience = std::chrono::seconds(5);

enum class Reading { more, whole, broken };

// A socket on which a hello is arriving.
struct Arriving {
  Fd socket;
  std::string bytes;
  std::vector<Fd> passed;
  Deadline patience = Deadline::after(kStrangerPatience);

  Reading read();
};

Reading Arriving::read() {
  char data[sizeof(Hello)];
  iovec piece{data, sizeof(Hello) - bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kDescriptorsMax)];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const auto got = ::recvmsg(socket.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) return errno == EAGAIN || errno == EINTR ? Reading::more : Reading::broken;
  for (auto* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      passed.emplace_back(fd);
    }
  }
  if (got == 0) return Reading::broken;
  bytes.append(data, static_cast<size_t>(got));
  return bytes.size() == sizeof(Hello) ? Reading::whole : Reading::more;
}

std::string fault_of(const Hello& hello, const Token& token) {
  if (hello.magic != Hello::kMagic) return "it does not speak pycomm's protocol";
  if (hello.version != kWireVersion) {
    return str("it speaks protocol version ", hello.version, ", expected ", kWireVersion);
  }
  if (hello.token != token) return str("rank ", hello.rank, " presented a wrong token");
  return {};
}

[[noreturn]] void throw_incomplete(const std::vector<Greeting>& came, size_t count,
                                   const std::vector<int>& expected_ranks) {
  Failure failure{FailureKind::timeout, {}, {}};
  failure.text = str("only ", came.size(), " of ", count, " expected connections came in time");
  for (const int rank : expected_ranks) {
    const auto hellos = std::count_if(
        came.begin(), came.end(), [rank](const Greeting& one) { return one.hello.rank == rank; });
    if (static_cast<size_t>(hellos) * expected_ranks.size() >= count) continue;
    failure.text += str(failure.ranks.empty() ? "; missing: " : ", ", "rank ", rank);
    failure.ranks.push_back(rank);
  }
  throw CommError(std::move(failure));
}

}  // namespace

void send_hello(int socket, const Hello& hello, const std::vector<int>& descriptors) {
  iovec piece{const_cast<Hello*>(&hello), sizeof(hello)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kDescriptorsMax)] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    const size_t bytes = descriptors.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(bytes);
    auto* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(bytes);
    std::memcpy(CMSG_DATA(c), descriptors.data(), bytes);
  }
  // A fresh socket's buffer takes 32 bytes whole.
  if (::sendmsg(socket, &message, MSG_NOSIGNAL) != sizeof(hello)) throw_system("cannot say hello");
}

std::vector<Greeting> accept_greetings(int listener, const Token& token, size_t count,
                                       Patience patience,
                                       const std::function<void(const std::string&)>& refused,
                                       const std::vector<int>& expected_ranks) {
  std::vector<Greeting> greetings;
  std::vector<Arriving> arriving;
  while (greetings.size() < count) {
    patience.glance();
    if (patience.expired()) {
      patience.ask_why();  // who did not come may know better, at the end of the same time
      throw_incomplete(greetings, count, expected_ranks);
    }
    std::vector<pollfd> fds{{listener, POLLIN, 0}};
    for (const auto& one : arriving) fds.push_back({one.socket.get(), POLLIN, 0});
    ::poll(fds.data(), fds.size(), patience.slice_ms());
    for (size_t i = arriving.size(); i-- > 0;) {
      auto& one = arriving[i];
      const auto reading = fds[i + 1].revents ? one.read() : Reading::more;
      if (reading == Reading::more && !one.patience.expired()) continue;
      if (reading == Reading::whole) {
        Greeting greeting;
        std::memcpy(&greeting.hello, one.bytes.data(), sizeof(Hello));
        const auto fault = fault_of(greeting.hello, token);
        if (fault.empty() && greetings.size() < count) {
          greeting.socket = std::move(one.socket);
          greeting.passed = std::move(one.passed);
          greetings.push_back(std::move(greeting));
        } else {
          refused(fault);
        }
      }
      arriving.erase(arriving.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (fds[0].revents) {
      Fd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (socket && arriving.size() >= kStrangersMax) arriving.erase(arriving.begin());
      if (socket) arriving.push_back({std::move(socket), {}, {}});
    }
  }
  return greetings;
}

Greeting receive_answer(Fd socket, const PeerAddress& peer, const Token& token, Patience patience) {
  Arriving answer{std::move(socket), {}, {}};
  const auto fail = [&peer](FailureKind kind, const std::string& what) {
    const auto at = peer.port == 0 ? "" : " at " + endpoint(peer.ip, peer.port);
    throw CommError(Failure{kind, peer.describe() + at + what, {peer.rank}});
  };
  while (true) {
    pollfd fd{answer.socket.get(), POLLIN, 0};
    ::poll(&fd, 1, patience.slice_ms());
    const auto reading = fd.revents ? answer.read() : Reading::more;
    if (reading == Reading::broken) {
      patience.ask_why();
      fail(FailureKind::peer_failure, " closed the connection during set-up; look there for why");
    }
    if (reading == Reading::whole) break;
    patience.glance();
    if (!patience.expired()) continue;
    patience.ask_why();
    fail(FailureKind::timeout, " did not answer during set-up");
  }
  Greeting greeting;
  std::memcpy(&greeting.hello, answer.bytes.data(), sizeof(Hello));
  if (const auto fault = fault_of(greeting.hello, token); !fault.empty()) {
    fail(FailureKind::peer_failure, " gave a wrong answer: " + fault);
  }
  greeting.socket = std::move(answer.socket);
  greeting.passed = std::move(answer.passed);
  return greeting;
}

}  // namespace pycomm
