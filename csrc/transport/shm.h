// SPDX-License-Identifier: MIT
// Shared memory between ranks of one host.
//
// Every rank owns an inbox: an anonymous segment with its doorbell and two rings for each peer. It
// is passed by descriptor over an abstract unix socket, so nothing has a name in the file system
// and nothing stays behind after a crash; the socket lives on as the control link. Ranks that are
// threads of one process are served the same way.
#pragma once

#include "base/fd.h"
#include "transport/shm_ring.h"
#include "transport/transport.h"

namespace pycomm {

class ShmTransport final : public Transport {
 public:
  ShmTransport(int world_size, RingLayout layout);

  std::string_view name() const override { return "shm"; }
  void describe(PeerAddress& mine) override;
  bool reaches(const PeerAddress& mine, const PeerAddress& theirs) const override;
  std::vector<Link> connect(const std::vector<PeerAddress>& addresses, int rank,
                            const std::vector<int>& peers, Patience& patience) override;

  // This rank's own first page; lives as long as `inbox`.
  RankPage* page() const { return reinterpret_cast<RankPage*>(inbox_->data()); }
  std::shared_ptr<Mapping> inbox() const { return inbox_; }
  int event_fd() const { return event_fd_.get(); }

 private:
  size_t rings_offset(int sender) const;
  Link make_link(int rank, int peer, Fd socket, std::vector<Fd> passed) const;

  RingLayout layout_;
  Fd listener_;
  std::string unix_name_;
  Fd segment_;
  Fd event_fd_;
  std::shared_ptr<Mapping> inbox_;
};

}  // namespace pycomm
