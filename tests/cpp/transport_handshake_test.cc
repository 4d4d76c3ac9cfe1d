// SPDX-License-Identifier: MIT
// Strangers at the door: whoever presents no token, another version or garbage is turned away, and
// the group is set up all the same.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "transport/handshake.h"

using namespace pycomm;

namespace {

// A listening socket with an abstract name, as the shared-memory transport has one.
class Door {
 public:
  Door() : name_("pycomm-test-" + to_hex(random_token())) {
    listener_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const auto length = fill();
    CHECK(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address_), length) == 0);
    CHECK(::listen(listener_.get(), 1024) == 0);
  }
  int listener() const { return listener_.get(); }
  Fd knock() {
    Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const auto length = fill();
    CHECK(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address_), length) == 0);
    return socket;
  }

 private:
  socklen_t fill() {
    address_ = {};
    address_.sun_family = AF_UNIX;
    std::memcpy(address_.sun_path + 1, name_.data(), name_.size());
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name_.size());
  }
  std::string name_;
  sockaddr_un address_{};
  Fd listener_;
};

Hello hello(int rank, const Token& token) {
  Hello one;
  one.rank = rank;
  one.token = token;
  return one;
}

struct Evening {
  std::vector<Greeting> greetings;
  std::vector<std::string> refused;
};
Evening accept(Door& door, const Token& token, size_t count,
               std::chrono::nanoseconds patience = std::chrono::seconds(20)) {
  Evening evening;
  evening.greetings =
      accept_greetings(door.listener(), token, count, Deadline::after(patience),
                       [&](const std::string& why) { evening.refused.push_back(why); });
  return evening;
}

bool was_told(const std::vector<std::string>& all, const std::string& part) {
  for (const auto& one : all) {
    if (one.find(part) != std::string::npos) return true;
  }
  return false;
}

void write_all(const Fd& socket, const void* data, size_t bytes) {
  CHECK(::send(socket.get(), data, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes));
}

}  // namespace

TEST("good hellos are accepted, also when they come in pieces") {
  Door door;
  const Token token = random_token();
  const Fd whole = door.knock(), pieces = door.knock();
  send_hello(whole.get(), hello(1, token), {});
  const Hello second = hello(2, token);
  const auto* bytes = reinterpret_cast<const char*>(&second);
  write_all(pieces, bytes, 5);
  std::thread slow([&] {
    for (size_t at = 5; at < sizeof(Hello); ++at) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      write_all(pieces, bytes + at, 1);
    }
  });
  const auto evening = accept(door, token, 2);
  slow.join();
  CHECK(evening.greetings[0].hello.rank == 1 && evening.greetings[1].hello.rank == 2);
  CHECK(evening.refused.empty());
}

TEST("a wrong token, another version and another protocol are refused and said so") {
  Door door;
  const Token token = random_token();
  std::vector<Fd> strangers;
  strangers.push_back(door.knock());
  send_hello(strangers.back().get(), hello(7, random_token()), {});
  auto other = hello(2, token);
  other.version = kWireVersion + 1;
  strangers.push_back(door.knock());
  send_hello(strangers.back().get(), other, {});
  strangers.push_back(door.knock());
  write_all(strangers.back(), "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", 37);
  const Fd good = door.knock();
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    send_hello(good.get(), hello(3, token), {});
  });
  const auto evening = accept(door, token, 1);
  late.join();
  CHECK(evening.greetings[0].hello.rank == 3);
  CHECK(evening.refused.size() == 3, evening.refused.size());
  CHECK(was_told(evening.refused, "rank 7 presented a wrong token"));
  CHECK(was_told(evening.refused, "speaks protocol version 2, expected 1"));
  CHECK(was_told(evening.refused, "does not speak pycomm's protocol"));
  char byte;
  for (const auto& one : strangers) CHECK(::recv(one.get(), &byte, 1, 0) <= 0, "still connected");
}

TEST("strangers who say nothing, hang up or come in crowds hold up nobody") {
  Door door;
  const Token token = random_token();
  std::vector<Fd> crowd;
  for (int k = 0; k < 300; ++k) crowd.push_back(door.knock());
  door.knock();  // and hangs up
  const Fd half = door.knock();
  write_all(half, "0123456789", 10);
  const Fd good = door.knock();
  send_hello(good.get(), hello(1, token), {});
  const auto began = std::chrono::steady_clock::now();
  const auto evening = accept(door, token, 1);
  CHECK(evening.greetings[0].hello.rank == 1);
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(4));
}

TEST("waiting ends at the deadline and says how many came") {
  Door door;
  const Token token = random_token();
  const Fd good = door.knock();
  send_hello(good.get(), hello(1, token), {});
  std::string told;
  try {
    accept(door, token, 3, std::chrono::milliseconds(1500));  // enough to take the good one in
  } catch (const CommError& error) {
    told = error.what();
    CHECK(error.failure().kind == FailureKind::timeout);
  }
  CHECK(told.find("only 1 of 3 expected connections came in time") != std::string::npos, told);
}

TEST("descriptors come along with a hello and with the answer") {
  Door door;
  const Token token = random_token();
  int pipe[2];
  CHECK(::pipe2(pipe, O_CLOEXEC) == 0);
  const Fd reading(pipe[0]), writing(pipe[1]);
  Fd caller = door.knock();
  send_hello(caller.get(), hello(1, token), {writing.get()});
  auto evening = accept(door, token, 1);
  CHECK(evening.greetings[0].passed.size() == 1);
  CHECK(::write(evening.greetings[0].passed[0].get(), "x", 1) == 1);
  char byte = 0;
  CHECK(::read(reading.get(), &byte, 1) == 1 && byte == 'x');
  CHECK((::fcntl(evening.greetings[0].passed[0].get(), F_GETFD) & FD_CLOEXEC) != 0);
  send_hello(evening.greetings[0].socket.get(), hello(0, token), {reading.get(), writing.get()});
  const auto answer = receive_answer(std::move(caller), PeerAddress{}, token,
                                     Deadline::after(std::chrono::seconds(20)));
  CHECK(answer.hello.rank == 0 && answer.passed.size() == 2);
}

TEST("an answer that is late, missing or somebody else's is an error that says who") {
  Door door;
  const Token token = random_token();
  PeerAddress peer;
  peer.rank = 5;
  peer.pid = 4711;
  peer.host = "node7";
  peer.ip = "fd00::7";
  peer.port = 4000;
  const auto answer_after = [&](auto act) {
    Fd caller = door.knock();
    Fd other(::accept4(door.listener(), nullptr, nullptr, SOCK_CLOEXEC));
    act(other);
    try {
      receive_answer(std::move(caller), peer, token,
                     Deadline::after(std::chrono::milliseconds(100)));
    } catch (const CommError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  CHECK(answer_after([](Fd& socket) { socket.reset(); }) ==
        "rank 5 (pid 4711 on node7) at [fd00::7]:4000 closed the connection during set-up; look "
        "there for why");
  CHECK(answer_after([](Fd&) {}) ==
        "rank 5 (pid 4711 on node7) at [fd00::7]:4000 did not answer during set-up");
  const auto wrong =
      answer_after([&](Fd& socket) { send_hello(socket.get(), hello(5, random_token()), {}); });
  CHECK(wrong.find("rank 5 (pid 4711 on node7) at [fd00::7]:4000") == 0 &&
            wrong.find("wrong token") != std::string::npos,
        wrong);
  const auto garbage =
      answer_after([&](Fd& socket) { write_all(socket, std::string(32, 'x').data(), 32); });
  CHECK(garbage.find("does not speak pycomm's protocol") != std::string::npos, garbage);
}
