// SPDX-License-Identifier: MIT
// The ranks of a group and their devices: which mode they work in, and modes S and K, in which
// ranks work through GPU memory that all of them map. In mode K, where every rank has a GPU of its
// own, all_reduce is kernels that wait for one another (device_peer_kernels.h); all else is as in
// mode S.
//
// A kernel that waits for another process's kernel on the same GPU may wait for a time slice or for
// ever, so in mode S no kernel waits: streams do, for words in memory of the host (device_words.h).
// A tensor
// goes in pieces through slots of a pool (device_pool.h). Of each piece a rank's stream first puts
// its input and writes `ready`; then either the leader, another rank for each operation, waits for
// all, carries out the sum and writes `done`, or every rank waits for all and reads what it needs.
// Slots are used in turn, so that while one piece is summed the next is put. Everything is enqueued
// by the call itself; no thread ever waits for a stream.
//
// At the call each rank publishes what it was asked for and looks what the others have published:
// whoever comes last to a mismatch sees it before it has written anything that a peer's stream
// waits for. Deadlines and deaths are the engine's, which attends to the operation; a failure
// releases the streams by plain stores. Captured work keeps the rules of its own, see
// enqueue_captured().
//
// Set-up is collective. prepare() and enqueue() under one lock of the caller, on streams that are
// ordered one behind the other. The engine, the device and the kernels outlive it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/device_peer_kernels.h"
#include "engine/device_stages.h"

namespace pycomm {

struct DeviceGroupOptions {
  char mode = 0;                         // 'H', 'S' or 'K'; 0: the best there is
  size_t pool_bytes = kDevicePoolBytes;  // of all ranks on a GPU together
  std::string all_reduce{};              // in mode K, an algorithm by name; empty: by size
};

class DeviceGroup {
 public:
  // Collective. Throws CommError when the group fails meanwhile, UsageError when ranks ask for
  // different modes; what a device cannot do ends in mode H.
  static std::unique_ptr<DeviceGroup> connect(Engine& engine, Device& device,
                                              const DeviceKernels& kernels,
                                              const DeviceGroupOptions& options);
  // Waits a short while for streams and peers; memory that they may still use then stays to the end
  // of the process, as does that of captured work.
  ~DeviceGroup();
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  DeviceMode mode() const { return choice_.mode; }
  // "S: 4 ranks share GPU-...; 2 MiB slots by file descriptor, 8 MiB of GPU memory on this rank"
  std::string describe() const;
  // Of this rank: on the GPU, and pinned on the host.
  size_t device_bytes() const { return pool_ ? pool_->bytes() : 0; }
  size_t host_bytes() const { return words_ ? DeviceWords::bytes_for(world_size_) : 0; }

  // Alike on all ranks. What is not served here goes through the host.
  bool serves(const Operation& wanted) const;

  struct Call {
    std::shared_ptr<Operation> operation;  // for Engine::submit(); null: captured, nothing to watch
    DeviceWork work;
    uint64_t first = 0;  // number of its first piece
    size_t pieces = 0;
    // Mode K carries it out, as one piece.
    bool by_kernels = false;
    PeerKernels::Launch launch;
    // Whether the stream has done with it. A failure ends the operation at once, while the stream,
    // which it has released, still has copies to make. Plain loads, any thread; null: captured.
    std::function<bool()> passed;
  };
  // `wanted`: its regions are device memory; the engine never gets it. Throws CommError when the
  // group has failed, and fails it on a mismatch. From here on peers' streams may wait for this
  // call, so what then keeps it from its stream must abort the group.
  Call prepare(const Operation& wanted, bool captured);
  // After the operation has been submitted. When it fails the caller aborts the group, for peers
  // wait.
  Failure enqueue(const Call& call, void* stream);

 private:
  DeviceGroup(Engine& engine, Device& device);
  OpSignature signature_of(const DeviceWork& work, bool captured) const;
  std::chrono::nanoseconds timeout_of(const Operation& wanted) const;
  Failure set_up(DeviceRendezvous& rendezvous, const DeviceKernels& kernels,
                 const std::vector<DeviceCard>& cards, const DeviceGroupOptions& options);
  void check_with_peers(const Operation& wanted, const OpSignature& mine);
  void await_laggards(const Operation& wanted, const OpSignature& mine);
  DevicePiece piece_of(const Call& call, size_t index) const;
  Failure put(const Call& call, size_t index, void* stream);
  Failure carry_out(const Call& call, size_t index, void* stream);
  Failure enqueue_pieces(const Call& call, void* stream);
  Failure enqueue_kernels(const Call& call, void* stream);
  Failure enqueue_captured(const Call& call, void* stream);
  Failure hand_over(bool second, bool gives, bool gets, int other, void* stream);

  Engine& engine_;
  Device& device_;
  const int rank_, world_size_;
  ModeChoice choice_;
  std::shared_ptr<DeviceWords> words_;
  std::unique_ptr<DevicePool> pool_;
  std::unique_ptr<DeviceStages> stages_;
  std::unique_ptr<PeerKernels> kernels_;  // of mode K
  PeerPlan chosen_;
  uint64_t calls_ = 0, pieces_, unled_piece_ = 0;
  bool captured_ = false;
};

}  // namespace pycomm
