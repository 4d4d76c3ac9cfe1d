// SPDX-License-Identifier: MIT
// Which interface PYCOMM_SOCKET_IFNAME means, on a made-up host and on this one; ports to listen
// on.
#include <map>
#include <random>

#include "base/error.h"
#include "check.h"
#include "transport/interface.h"
#include "transport/socket_address.h"
#include "transport/tcp_endpoint.h"

using namespace pycomm;

namespace {

// As local_interfaces() lists them: IPv4 first.
const std::vector<LocalInterface> kHost = {
    {"lo", "127.0.0.1", 1, true, true},
    {"docker0", "172.17.0.1", 2, true, false},
    {"eth10", "192.168.0.7", 4, true, false},
    {"eth1", "10.1.0.7", 3, true, false},
    {"lo", "::1", 1, true, true},
    {"eth10", "fd00:2::7", 4, true, false},
    {"eth1", "fe80::1", 3, true, false},
    {"eth1", "fd00:1::7", 3, true, false},
    {"ib0", "fe80::2", 5, true, false},
};

// The address that is chosen, or "" when nothing matches.
std::string chosen(const std::string& text) {
  const auto found = InterfaceFilter(text).select(kHost);
  return found.empty() ? "" : found.front().ip;
}

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  } catch (const CommError& error) {
    return error.what();
  }
  return {};
}

// A loopback address nobody else uses, so that all its ports are free.
LocalInterface own_loopback() {
  std::random_device random;
  return {"lo", str("127.", 1 + random() % 250, ".", random() % 250, ".", 2 + random() % 250), 1,
          true, true};
}

}  // namespace

TEST("names choose interfaces: the exact one before those that begin so, IPv4 before IPv6") {
  const std::map<std::string, std::string> expected = {
      {"eth1", "10.1.0.7"},         {"eth", "192.168.0.7"},
      {"nosuch0,eth1", "10.1.0.7"}, {"=eth", ""},
      {"=eth10", "192.168.0.7"},    {"ib0", "fe80::2"},
      {"ib0,eth1", "fe80::2"},      {"nosuch0", ""},
      {"lo", "127.0.0.1"},
  };
  for (const auto& [text, ip] : expected) CHECK(chosen(text) == ip, text, ": ", chosen(text));
}

TEST("networks choose addresses, of either family") {
  const std::map<std::string, std::string> expected = {
      {"10.0.0.0/8", "10.1.0.7"},        {"10.1.0.7", "10.1.0.7"},    {"10.1.0.8", ""},
      {"10.1.0.0/29", "10.1.0.7"},       {"10.1.0.8/29", ""},         {"fd00::/8", "fd00:2::7"},
      {"fd00:1::/32", "fd00:1::7"},      {"fe80::/10", "fe80::1"},    {"fe80::2", "fe80::2"},
      {"11.0.0.0/8,eth1", "10.1.0.7"},   {"0.0.0.0/0", "172.17.0.1"}, {"fd00:3::/32", ""},
      {"192.168.1.9/23", "192.168.0.7"},
  };
  for (const auto& [text, ip] : expected) CHECK(chosen(text) == ip, text, ": ", chosen(text));
}

TEST("what is excluded is left out, the rest keeps its order") {
  const auto left = InterfaceFilter("^docker,lo,10.0.0.0/8").select(kHost);
  CHECK(left.size() == 5 && left[0].ip == "192.168.0.7", left.size());
  CHECK(InterfaceFilter("^=eth").select(kHost).size() == kHost.size());
  CHECK(InterfaceFilter("^=eth1").select(kHost).size() == kHost.size() - 3);
  CHECK(InterfaceFilter("").empty() && !InterfaceFilter("").excludes());
}

TEST("text that is no name and no network is quoted") {
  for (const std::string text : {"10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0.0/x", "eth0/8",
                                 "^", "eth0,,eth1", "eth0,^lo", "eth0 eth1", "10.0.0.0/-1"}) {
    const auto told = refusal([&] { InterfaceFilter filter(text); });
    CHECK(told.find("PYCOMM_SOCKET_IFNAME=" + text + ": ") == 0, text, ": ", told);
  }
}

TEST("on this host loopback is found by name and address, and by the route to a store there") {
  CHECK(choose_interface("lo", "").ip == "127.0.0.1");
  CHECK(choose_interface("nosuch0,lo", "").name == "lo");
  CHECK(choose_interface("127.0.0.0/8", "").name == "lo");
  CHECK(choose_interface("", "127.0.0.1").ip == "127.0.0.1");
  CHECK(choose_interface("", "localhost").name == "lo");
  CHECK(!choose_interface("", "").ip.empty());
  CHECK(!choose_interface("", "no.such.host.invalid").ip.empty());
}

TEST("when no interface is left the error lists those there are") {
  const auto told = refusal([] { choose_interface("nosuch0,203.0.113.0/24", ""); });
  CHECK(told.find("PYCOMM_SOCKET_IFNAME=nosuch0,203.0.113.0/24 names no interface") == 0 &&
            told.find("lo (127.0.0.1") != std::string::npos,
        told);
  const auto none =
      refusal([] { choose_interface("^0.0.0.0/0,127.0.0.0/8,::/0,::1,fe80::/10", ""); });
  CHECK(none.find("leaves no interface") != std::string::npos, none);
  auto host = kHost;
  host.push_back({"eth2", "", 6, false, false});
  host.push_back({"eth3", "", 7, true, false});
  CHECK(list_interfaces(host).find("docker0 (172.17.0.1), eth1 (10.1.0.7, fe80::1, fd00:1::7)") ==
        0);
  CHECK(list_interfaces(host).find("eth2 (down), eth3 (no address)") != std::string::npos);
}

TEST("listeners share a range until it is full, and the error counts and names it") {
  const auto lo = own_loopback();
  std::vector<Listening> all;
  for (int k = 0; k < 3; ++k) all.push_back(listen_on(lo, {41000, 41002}));
  std::map<int, int> seen;
  for (const auto& one : all) ++seen[one.port];
  CHECK(seen.size() == 3 && seen.begin()->first == 41000 && seen.rbegin()->first == 41002);
  const auto told = refusal([&] { listen_on(lo, {41000, 41002}); });
  CHECK(told.find(str("cannot listen on ", lo.ip,
                      " (interface lo): 3 of 3 ports of "
                      "PYCOMM_PORT_RANGE=41000-41002 are in use")) == 0,
        told);
  all.pop_back();
  CHECK(listen_on(lo, {41000, 41002}).port != 0, "a port that is free again is used again");
}

TEST("a connection that lives on does not keep the port of its listener") {
  const auto lo = own_loopback();
  auto first = listen_on(lo, {41000, 41000});
  PeerAddress peer;
  peer.ip = lo.ip;
  peer.port = first.port;
  Patience patience(Deadline::after(std::chrono::seconds(10)));
  const Fd caller = connect_to(peer, lo, patience);
  const Fd accepted(::accept4(first.socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
  CHECK(caller && accepted);
  first.socket.reset();
  CHECK(listen_on(lo, {41000, 41000}).port == 41000);
}

TEST("a refused connection names the peer, both ends, the reason and what to do") {
  const auto lo = own_loopback();
  auto peer = local_address(3, 4);
  peer.host = "node7";
  peer.ip = lo.ip;
  peer.port = 41000;
  peer.interface = "eth9";
  Patience patience(Deadline::after(std::chrono::seconds(10)));
  const auto told = refusal([&] { connect_to(peer, lo, patience); });
  for (const auto& part :
       {str("cannot connect to rank 3 (pid ", peer.pid, " on node7) at ", lo.ip, ":41000"),
        std::string("(its interface eth9) from"), std::string("(interface lo"),
        std::string("Connection refused, after 0."), std::string("PYCOMM_SOCKET_IFNAME")}) {
    CHECK(told.find(part) != std::string::npos, part, " is not in: ", told);
  }
}

TEST("addresses of two families, or loopback against a network, are refused before connecting") {
  auto mine = local_address(0, 2), theirs = local_address(1, 2);
  const auto told = [&](const std::string& here, const std::string& there) {
    mine.ip = here;
    theirs.ip = there;
    return refusal([&] { require_one_network(mine, theirs); });
  };
  CHECK(told("10.0.0.1", "fd00::2").find("one IPv6, one IPv4") != std::string::npos);
  CHECK(told("10.0.0.1", "10.0.0.2").empty() && told("fd00::1", "fd00::2").empty());
  theirs.host_id = "another";
  theirs.host = "node7";
  CHECK(told("10.0.0.1", "127.0.1.1").find("set PYCOMM_SOCKET_IFNAME on node7") !=
        std::string::npos);
  CHECK(told("::1", "fd00::2").find("set PYCOMM_SOCKET_IFNAME on " + mine.host) !=
        std::string::npos);
  CHECK(told("127.0.0.1", "127.0.0.1").empty());
}

TEST("endpoints are written as people write them") {
  CHECK(endpoint("10.0.0.1", 4000) == "10.0.0.1:4000" && endpoint("fd00::1", 4) == "[fd00::1]:4");
}
