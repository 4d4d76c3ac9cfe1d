// SPDX-License-Identifier: MIT
#include "transport/tcp_endpoint.h"

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <iomanip>
#include <random>

#include "base/error.h"
#include "transport/socket_address.h"

namespace pycomm {
namespace {

// 0, or errno.
int try_listen(const LocalInterface& interface, int port, bool reuse, Listening& made) {
  auto address = SocketAddress::make(interface.ip, port, interface.index);
  made.socket = Fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made.socket) return errno;
  // Connections of earlier groups still hold the port they were accepted on.
  const int one = 1;
  if (reuse) ::setsockopt(made.socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (::bind(made.socket.get(), address.get(), address.length) != 0 ||
      ::listen(made.socket.get(), 4096) != 0) {
    return errno;
  }
  made.port = local_end(made.socket.get()).port();
  return 0;
}

std::string hint_for(int error, const SocketAddress& target) {
  if (target.is_loopback()) {
    return "that is a loopback address, which only its own host reaches; set PYCOMM_SOCKET_IFNAME "
           "to an interface or network that joins the hosts";
  }
  if (error == ECONNREFUSED) {
    return "that process has ended, or a firewall rejects the port (PYCOMM_PORT_RANGE limits the "
           "ports to open)";
  }
  if (error == ETIMEDOUT) {
    return "nothing answers there: a firewall drops the packets (PYCOMM_PORT_RANGE limits the "
           "ports to open), or set PYCOMM_SOCKET_IFNAME to an interface or network that joins the "
           "hosts";
  }
  return "no way leads there; set PYCOMM_SOCKET_IFNAME to an interface or network that joins the "
         "hosts";
}

// Where the kernel sent from, else where it should have.
std::string describe_source(int socket, const LocalInterface& from) {
  const auto source = local_end(socket);
  if (source.is_unspecified() || source.ip() == from.ip) {
    return str(from.ip, " (interface ", from.name, ")");
  }
  for (const auto& one : local_interfaces()) {
    if (one.ip == source.ip()) {
      return str(one.ip, " (interface ", one.name, ", by the routing table; this rank listens on ",
                 from.ip, ")");
    }
  }
  return source.ip();
}

// Waits for the end of a non-blocking connect; 0, or errno.
int finish_connect(int socket, Deadline until, Patience& patience) {
  while (true) {
    pollfd fd{socket, POLLOUT, 0};
    if (::poll(&fd, 1, patience.slice_ms()) > 0) {
      int error = 0;
      socklen_t size = sizeof(error);
      ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size);
      return error;
    }
    if (until.expired() || patience.expired()) return ETIMEDOUT;
    patience.glance();
  }
}

}  // namespace

Listening listen_on(const LocalInterface& interface, PortRange ports) {
  Listening made;
  const auto where = str(interface.ip, " (interface ", interface.name, ")");
  if (ports.high == 0) {
    errno = try_listen(interface, 0, false, made);
    if (errno != 0) throw_system("cannot listen on " + where);
    return made;
  }
  const int count = ports.high - ports.low + 1;
  const int first = static_cast<int>(std::random_device{}() % static_cast<unsigned>(count));
  for (int k = 0; k < count; ++k) {
    const int port = ports.low + (first + k) % count;
    errno = try_listen(interface, port, true, made);
    if (errno == 0) return made;
    if (errno != EADDRINUSE) throw_system(str("cannot listen on port ", port, " of ", where));
  }
  throw CommError(Failure{
      FailureKind::system,
      str("cannot listen on ", where, ": ", count, " of ", count,
          " ports of PYCOMM_PORT_RANGE=", ports.low, "-", ports.high,
          " are in use; each rank of a host needs one while a group is being set up, so widen the "
          "range or end what listens there"),
      {}});
}

Fd connect_to(const PeerAddress& peer, const LocalInterface& from, Patience& patience) {
  auto target = SocketAddress::make(peer.ip, peer.port, from.index);
  Fd socket(::socket(target.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) throw_system("cannot open a TCP socket");
  const auto began = Deadline::Clock::now();
  int error = ::connect(socket.get(), target.get(), target.length) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    error = finish_connect(socket.get(), Deadline::after(kReachTimeout), patience);
  }
  if (error == 0) {
    const int one = 1;
    ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return socket;
  }
  const std::chrono::duration<double> tried = Deadline::Clock::now() - began;
  const auto text =
      str("cannot connect to ", peer.describe(), " at ", endpoint(peer.ip, peer.port),
          " (its interface ", peer.interface, ") from ", describe_source(socket.get(), from), ": ",
          std::strerror(error), ", after ", std::fixed, std::setprecision(1), tried.count(), " s; ",
          hint_for(error, target));
  // A listener that is gone was closed by a rank that failed; other reasons are causes themselves.
  if (error == ECONNREFUSED || error == ECONNRESET) patience.ask_why();
  throw CommError(Failure{FailureKind::peer_failure, text, {peer.rank}});
}

void require_one_network(const PeerAddress& mine, const PeerAddress& theirs) {
  const auto refuse = [&](const std::string& why) {
    throw CommError(Failure{
        FailureKind::mismatch,
        str(theirs.describe(), " listens on ", theirs.ip, " (interface ", theirs.interface,
            ") and ", mine.describe(), " on ", mine.ip, " (interface ", mine.interface, "), ", why),
        {theirs.rank}});
  };
  if (std::strcmp(family_name(mine.ip), family_name(theirs.ip)) != 0) {
    refuse(str("one ", family_name(theirs.ip), ", one ", family_name(mine.ip),
               "; set PYCOMM_SOCKET_IFNAME on all hosts to one network, such as 10.0.0.0/8 or "
               "fd00::/8"));
  }
  const bool ours_loops = SocketAddress::make(mine.ip, 0, 0).is_loopback();
  if (mine.host_id != theirs.host_id &&
      ours_loops != SocketAddress::make(theirs.ip, 0, 0).is_loopback()) {
    refuse(str(
        "and nothing reaches the loopback address of another host; set "
        "PYCOMM_SOCKET_IFNAME on ",
        ours_loops ? mine.host : theirs.host, " to an interface or network that joins the hosts"));
  }
}

}  // namespace pycomm
