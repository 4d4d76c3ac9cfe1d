// SPDX-License-Identifier: MIT
#include "transport/interface.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>

#include <memory>
#include <sstream>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace pycomm {
namespace {

struct Candidate {
  LocalInterface interface;
  bool loopback;
  bool link_local;
};

std::string numeric(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address->sa_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text,
                sizeof(text));
  } else {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text,
                sizeof(text));
  }
  return text;
}

// All addresses of interfaces that are up, IPv4 before IPv6 of the same interface list.
std::vector<Candidate> candidates() {
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) throw_system("cannot list network interfaces");
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> list(raw, ::freeifaddrs);
  std::vector<Candidate> found;
  for (const int family : {AF_INET, AF_INET6}) {
    for (const auto* at = raw; at; at = at->ifa_next) {
      if (!at->ifa_addr || at->ifa_addr->sa_family != family || !(at->ifa_flags & IFF_UP)) continue;
      const auto ip = numeric(at->ifa_addr);
      found.push_back(
          {{at->ifa_name, ip}, (at->ifa_flags & IFF_LOOPBACK) != 0, ip.rfind("fe80:", 0) == 0});
    }
  }
  return found;
}

// The source address the kernel would use towards `host`; connecting a datagram socket sends
// nothing.
std::string route_to(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* raw = nullptr;
  if (::getaddrinfo(host.c_str(), "9", &hints, &raw) != 0) return {};
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(raw, ::freeaddrinfo);
  for (const auto* at = raw; at; at = at->ai_next) {
    const Fd probe(::socket(at->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage mine{};
    socklen_t size = sizeof(mine);
    if (probe && ::connect(probe.get(), at->ai_addr, at->ai_addrlen) == 0 &&
        ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&mine), &size) == 0) {
      return numeric(reinterpret_cast<sockaddr*>(&mine));
    }
  }
  return {};
}

}  // namespace

LocalInterface choose_interface(const std::string& wanted, const std::string& store_host) {
  const auto all = candidates();
  if (!wanted.empty()) {
    std::stringstream names(wanted);
    std::string name;
    while (std::getline(names, name, ',')) {
      for (const auto& one : all) {
        if (one.interface.name == name && !one.link_local) return one.interface;
      }
    }
    std::string there;
    for (const auto& one : all) there += " " + one.interface.name + "(" + one.interface.ip + ")";
    throw UsageError("PYCOMM_SOCKET_IFNAME=" + wanted +
                     " names no interface that is up; choose among:" + there);
  }
  if (!store_host.empty()) {
    const auto ip = route_to(store_host);
    for (const auto& one : all) {
      if (one.interface.ip == ip) return one.interface;
    }
  }
  for (const auto& one : all) {
    if (!one.loopback && !one.link_local) return one.interface;
  }
  return {"lo", "127.0.0.1"};
}

}  // namespace pycomm
