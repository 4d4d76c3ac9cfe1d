// SPDX-License-Identifier: MIT
#include "transport/interface.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/fd.h"
#include "transport/socket_address.h"

namespace pycomm {
namespace {

// The source address the kernel would use towards `host`; connecting a datagram socket sends
// nothing. Empty when there is none.
SocketAddress route_to(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* raw = nullptr;
  if (::getaddrinfo(host.c_str(), "9", &hints, &raw) != 0) return {};
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(raw, ::freeaddrinfo);
  for (const auto* at = raw; at; at = at->ai_next) {
    const Fd probe(::socket(at->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (probe && ::connect(probe.get(), at->ai_addr, at->ai_addrlen) == 0) {
      return local_end(probe.get());
    }
  }
  return {};
}

// Whether somebody wrote down a loopback address, or a name that never means anything else. A
// machine's own name often stands for 127.0.1.1 in its hosts file, which says nothing about the
// network that joins it to others.
bool means_loopback(const std::string& host) {
  in6_addr bytes;
  return host.rfind("localhost", 0) == 0 || ::inet_pton(AF_INET, host.c_str(), &bytes) == 1 ||
         ::inet_pton(AF_INET6, host.c_str(), &bytes) == 1;
}

LocalInterface choose_by_route(const std::vector<LocalInterface>& usable,
                               const std::string& store_host) {
  if (!store_host.empty()) {
    const auto source = route_to(store_host);
    for (const auto& one : usable) {
      if (one.ip != source.ip() || (source.scope() != 0 && one.index != source.scope())) continue;
      if (!one.loopback || means_loopback(store_host)) return one;
    }
  }
  for (const bool loopback : {false, true}) {
    for (const auto& one : usable) {
      if (one.loopback == loopback && !one.is_link_local()) return one;
    }
  }
  return {};
}

}  // namespace

std::vector<LocalInterface> local_interfaces() {
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) throw_system("cannot list network interfaces");
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> list(raw, ::freeifaddrs);
  std::vector<LocalInterface> found;
  const auto make = [](const ifaddrs& at, std::string ip) {
    return LocalInterface{at.ifa_name, std::move(ip), ::if_nametoindex(at.ifa_name),
                          (at.ifa_flags & IFF_UP) != 0, (at.ifa_flags & IFF_LOOPBACK) != 0};
  };
  for (const int family : {AF_INET, AF_INET6}) {
    for (const auto* at = raw; at; at = at->ifa_next) {
      if (!at->ifa_addr || at->ifa_addr->sa_family != family) continue;
      found.push_back(make(*at, SocketAddress::from(at->ifa_addr).ip()));
    }
  }
  for (const auto* at = raw; at; at = at->ifa_next) {
    const bool known = std::any_of(found.begin(), found.end(),
                                   [&](const auto& one) { return one.name == at->ifa_name; });
    if (!known) found.push_back(make(*at, ""));
  }
  return found;
}

LocalInterface choose_interface(const std::string& wanted, const std::string& store_host) {
  const InterfaceFilter filter(wanted);
  const auto all = local_interfaces();
  std::vector<LocalInterface> usable;
  for (const auto& one : all) {
    if (one.up && !one.ip.empty()) usable.push_back(one);
  }
  if (!filter.empty()) usable = filter.select(usable);
  if (!filter.empty() && !filter.excludes()) {
    PYCOMM_USAGE(
        !usable.empty(), "PYCOMM_SOCKET_IFNAME=", wanted,
        " names no interface that is up and has an address; this host has: ", list_interfaces(all));
    return usable.front();
  }
  auto chosen = choose_by_route(usable, store_host);
  PYCOMM_USAGE(
      !chosen.ip.empty() || filter.empty(), "PYCOMM_SOCKET_IFNAME=", wanted,
      " leaves no interface that is up and has an address; this host has: ", list_interfaces(all));
  return chosen.ip.empty() ? LocalInterface{"lo", "127.0.0.1", 0, true, true} : chosen;
}

std::string list_interfaces(const std::vector<LocalInterface>& all) {
  std::map<std::string, std::string> by_name;
  for (const auto& one : all) {
    auto& text = by_name[one.name];
    const std::string state = !one.up ? "down" : one.ip.empty() ? "no address" : one.ip;
    if (text != state) text += (text.empty() ? "" : ", ") + state;
  }
  std::string list;
  for (const auto& [name, text] : by_name) {
    list += (list.empty() ? "" : ", ") + name + " (" + text + ")";
  }
  return list;
}

}  // namespace pycomm
