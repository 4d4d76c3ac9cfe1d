// SPDX-License-Identifier: MIT
#include "transport/socket_address.h"

#include <arpa/inet.h>
#include <netdb.h>

#include <cstring>
#include <memory>

#include "base/error.h"

namespace pycomm {
namespace {

const sockaddr_in& v4(const sockaddr_storage& s) { return reinterpret_cast<const sockaddr_in&>(s); }
const sockaddr_in6& v6(const sockaddr_storage& s) {
  return reinterpret_cast<const sockaddr_in6&>(s);
}

}  // namespace

SocketAddress SocketAddress::make(const std::string& ip, int port, unsigned scope) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* raw = nullptr;
  if (::getaddrinfo(ip.c_str(), std::to_string(port).c_str(), &hints, &raw) != 0 || !raw) {
    throw CommError(Failure{FailureKind::system, "not a numeric address: '" + ip + "'", {}});
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(raw, ::freeaddrinfo);
  auto address = from(raw->ai_addr);
  if (address.family() == AF_INET6) {
    auto& in6 = reinterpret_cast<sockaddr_in6&>(address.storage);
    if (IN6_IS_ADDR_LINKLOCAL(&in6.sin6_addr)) in6.sin6_scope_id = scope;
  }
  return address;
}

SocketAddress SocketAddress::from(const sockaddr* address) {
  SocketAddress made;
  made.length = address->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  std::memcpy(&made.storage, address, made.length);
  return made;
}

std::string SocketAddress::ip() const {
  char text[INET6_ADDRSTRLEN] = {};
  if (family() == AF_INET) ::inet_ntop(AF_INET, &v4(storage).sin_addr, text, sizeof(text));
  if (family() == AF_INET6) ::inet_ntop(AF_INET6, &v6(storage).sin6_addr, text, sizeof(text));
  return text;
}

int SocketAddress::port() const {
  return ntohs(family() == AF_INET ? v4(storage).sin_port : v6(storage).sin6_port);
}

unsigned SocketAddress::scope() const {
  return family() == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&v6(storage).sin6_addr)
             ? v6(storage).sin6_scope_id
             : 0;
}

bool SocketAddress::is_loopback() const {
  if (family() == AF_INET) return ntohl(v4(storage).sin_addr.s_addr) >> 24 == 127;
  return family() == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6(storage).sin6_addr);
}

bool SocketAddress::is_unspecified() const {
  if (family() == AF_INET) return v4(storage).sin_addr.s_addr == INADDR_ANY;
  return family() != AF_INET6 || IN6_IS_ADDR_UNSPECIFIED(&v6(storage).sin6_addr);
}

SocketAddress local_end(int socket) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (::getsockname(socket, address.get(), &address.length) != 0) return {};
  return address;
}

std::string endpoint(const std::string& ip, int port) {
  const bool ipv6 = ip.find(':') != std::string::npos;
  return str(ipv6 ? "[" : "", ip, ipv6 ? "]:" : ":", port);
}

const char* family_name(const std::string& ip) {
  return ip.find(':') != std::string::npos ? "IPv6" : "IPv4";
}

}  // namespace pycomm
