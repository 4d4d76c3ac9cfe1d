// SPDX-License-Identifier: MIT
// Every constant that can be tuned, with its unit and the reason for its value, in one place.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace pycomm {

using namespace std::chrono_literals;

inline constexpr size_t kCacheLineBytes = 64;
inline constexpr size_t kPageBytes = 4096;

// Signatures and addresses carry ranks in 32 bits; control links are a full mesh of descriptors,
// and that is what bounds a group.
inline constexpr int kWorldSizeMax = 1024;

// A frame carries one segment. Two segments in flight per direction should fit the L2 cache (1 to 2
// MiB here) next to the tensor's own; a smaller segment pays the frame overhead more often.
inline constexpr size_t kSegmentBytes = 128 * 1024;
// Small chunks are cut finer, see engine/cut.h. Two segments let the receiver add the first while
// the second is sent. With more ranks than cores a core's cache serves the rings of several ranks,
// and a chunk that just fills a ring's slots keeps them small: 256 KiB between 4 ranks on 2 cores
// took 42 us instead of 67. A frame costs about as much as copying 4 KiB.
inline constexpr int kSegmentsWanted = 2;
inline constexpr size_t kSegmentBytesMin = 32 * 1024;
inline constexpr int kSegmentsWantedCrowded = 2;
inline constexpr size_t kSegmentBytesMinCrowded = 32 * 1024;
// Tensors of this size and more may travel in a narrow wire format. Below, a message costs more
// than its bytes on any network, and what is small (norms, losses, flags) is what rounding hurts.
inline constexpr size_t kNarrowBytesMin = 64 * 1024;
// PYCOMM_WIRE=auto: seconds that one float32 all_reduce of the race should take, so that bytes and
// not messages decide; its size; how often each format runs, fewer times where a link is slow. A
// format must win by this factor: less may be noise, and is not worth the rounding.
inline constexpr double kWireRaceS = 4e-3;
inline constexpr size_t kWireRaceBytesMin = 256 * 1024;
inline constexpr size_t kWireRaceBytesMax = 4 * 1024 * 1024;
inline constexpr int kWireRaceRoundsMin = 2;
inline constexpr int kWireRaceRoundsMax = 8;
inline constexpr double kWireGainMin = 1.25;
// A tensor is reduced slice by slice: a slice with the rings that carry it fits the L2 caches of
// the cores (1 MiB each here). 64 MiB between 2 ranks took 5.3 ms instead of 10.5; slices of half
// the size were as fast, of four times the size a quarter slower.
inline constexpr size_t kSliceBytesMin = 512 * 1024;
// Between hosts a slice also ends with a round trip in which nothing travels, so slices are larger:
// with 2 MiB for each rank that is 3 % at 10 Gbit/s and 0.1 ms. What travels encoded is not sliced:
// the network is slow then and memory is not what counts.
inline constexpr size_t kSliceBytesBetweenHosts = 2 * 1024 * 1024;
// Frames in flight per direction. Four let both sides work while two wait.
inline constexpr int kSlots = 4;
// In groups of this many ranks two: there are so many rings that with four slots each they leave
// the caches. 2 MiB between 8 ranks on 2 cores took 1.05 ms instead of 1.37.
inline constexpr int kFewSlotsRanks = 8;
inline constexpr int kFewSlots = 2;
// Beyond this many ranks on a host the rings shrink, so that a group's segments stay below
// kRingBytesPerRankMax of address space for each rank.
inline constexpr size_t kRingBytesPerRankMax = 32 * 1024 * 1024;

// Measuring what a message and a byte cost, once for each process: a size that the L2 holds several
// times, and the best of a few, as the machine may be busy. About half a millisecond in all; a
// partner that does not get a core is not waited for.
inline constexpr size_t kMeasureBytes = 64 * 1024;
inline constexpr int kMeasureRounds = 32;
inline constexpr int kMeasureTimes = 8;
inline constexpr int kMeasureSpins = 200;
inline constexpr auto kMeasureMax = 5ms;
// A new thread runs within some microseconds, on a machine that is crowded within its neighbours'
// time slices; figures are not worth more.
inline constexpr auto kMeasurePatience = 50ms;
// Of the machine on which the sizes in engine/select.cc were found; seconds, and seconds per byte.
inline constexpr double kAssumedAlphaS = 2.7e-7;
inline constexpr double kAssumedBetaSPerByte = 3.1e-11;
inline constexpr double kAssumedGammaSPerByte = 1e-11;

// The owner of a sum adds, and encodes with error feedback, this many elements at a time, a
// multiple of every codec's block: the sum and both residuals are 48 KiB together and stay in the
// L2 cache.
inline constexpr size_t kFeedbackElements = 4096;

// Payloads of this size and less travel inside the frame header's cache line.
inline constexpr size_t kInlinePayloadBytes = 16;

// From here on a chunk in memory that the peer maps travels as a reference: below, copying it into
// the ring costs less than waiting until the peer has read it. Blocks, and chunks that the peer
// answers in place, 2 ranks: 4 KiB 1.14 to 1.47 times as fast, while an all_reduce that is not in
// place took 1.4 times as long (whole tensors are written again, so its end waits). With more ranks
// than cores that wait may take two switches of the core. 4 and 8 ranks on 2 cores: in place 8 KiB
// 0.92 and 1.2 times as fast, 16 KiB 1.1 to 1.45; else 16 KiB 0.63 to 0.91, 32 KiB 1.03 to 1.17.
inline constexpr size_t kReferenceBytesMin = 4 * 1024;
inline constexpr size_t kWholeReferenceBytesMin = 8 * 1024;
inline constexpr size_t kReferenceBytesMinCrowded = 32 * 1024;
inline constexpr size_t kAnsweredReferenceBytesMinCrowded = 8 * 1024;

// Payloads of this size and less are staged by a transport that could do without: to copy one costs
// less than to ask twice, and it has left the engine's hands also when a connection is full.
inline constexpr size_t kStagedBytes = 4096;

// Waiting: look, look with pauses, yield the core, sleep; see wait_policy_for().
//
// A cache line crosses cores in 0.1 us and a pause of the processor takes 0.05 us, so the first
// looks go without. A futex wakes a sleeper in 2 to 6 us: looking for a few times as long is cheap
// where the core is the rank's own.
inline constexpr int kPolls = 100;
inline constexpr int kSpins = 1000;
inline constexpr auto kYields = 500us;
// With more ranks than cores the awaited rank may need this very core, so it is given away at the
// second look. A yield takes 1 us when nobody wants the core, and when somebody computes there it
// costs him 1 us in each of his time slices. 4 and 8 ranks on 2 cores: 20 looks before the first
// yield are 1.2 times slower.
inline constexpr int kPollsCrowded = 1;
inline constexpr auto kYieldsCrowded = 1ms;
// A look at sockets is a system call for each lane, and nothing comes through a network in less
// than 10 us, so a yield between two looks costs little. Cores may be short where nobody can see
// it: containers that share a machine without a limit each see all of its cores. Then the thread
// that is to deliver the data, the peer's or the kernel's, needs this core: two ranks that happened
// to share one exchanged 8 bytes in 540 us instead of 13 as long as they polled.
inline constexpr int kPollsSockets = 20;
// The progress thread waits while another thread of its rank may compute, on this core as like as
// not. A sleeper that is woken preempts him, one that yields gets the core back only when his time
// slice is over. So with a core for each rank this thread looks for 5 us and sleeps. With fewer it
// yields first, since the core may be wanted by an awaited rank: 4 ranks on 2 cores with idle main
// threads are 3 to 5 times as fast by it; where somebody computes, the first yield lasts longer
// than this and the thread sleeps after it.
inline constexpr int kSpinsProgress = 100;
inline constexpr auto kYieldsProgress = 200us;
// Between submitting an operation and waiting for it a program that does nothing else needs some
// 5 us; such an operation is run by who waits for it. While that happens the progress thread is not
// woken by small ones but looks by itself this often, which takes it 3 us, and gives it up after so
// many looks in vain. Where a larger one begins, the microseconds of a wake-up do not show.
inline constexpr auto kNap = 50us;
inline constexpr int kNaps = 20;
inline constexpr size_t kNapBytesMax = 64 * 1024;
// A sleeper wakes this often to look at deadlines, failures and silent peers.
inline constexpr auto kSleepSlice = 20ms;

// A stream of a device that fills what is to be sent wakes nobody. It is looked for with a yield
// each, so many times, then this often: a copy of 4 MiB over PCIe takes some 200 us.
inline constexpr int kReadyYields = 200;
inline constexpr auto kReadyNap = 50us;
// Tensors of a device go through pinned memory of the host in pieces of this size, two at a time:
// with a few such copies in flight PCIe is busy, and two blocks of a group stay far below 64 MiB.
inline constexpr size_t kStagedPieceBytes = 4 * 1024 * 1024;
// Queues that a GPU takes the work of streams from, unless CUDA_DEVICE_MAX_CONNECTIONS says other:
// with fewer a stream that waits for a peer soon holds others back.
inline constexpr int kDeviceConnections = 8;
// How long a forward waits for a backward on a device to be over for autograd, too, before it takes
// it for one that another thread goes on with: a thread may be kept from running for a while.
inline constexpr auto kBackwardEndPatience = 1s;
// How long one who takes such memory down waits for the streams that may still use it.
inline constexpr auto kStreamPatience = 2s;

// Failure detection. Pings start after kPingAfter of waiting, then go every kPingEvery to the
// awaited peers only.
inline constexpr auto kPingAfter = 50ms;
inline constexpr auto kPingEvery = 100ms;
inline constexpr auto kDetectTimeout = 3s;
// A gap this long between two looks means that this process itself was stopped: peers get a fresh
// start.
inline constexpr auto kSelfStall = 500ms;
// How long a symptom waits for its cause to become known: a watcher hears of a death within
// milliseconds, an answer to a ping takes no longer.
inline constexpr auto kEchoPatience = 100ms;
// The same where an answer needs a thread of a peer, or this rank's watcher, that a busy machine
// may keep from running.
inline constexpr auto kAnswerPatience = 500ms;
inline constexpr auto kWatcherPatience = 2s;
// A message may arrive this much later than the farewell of the rank that sent it.
inline constexpr auto kFarewellPatience = 1s;

// A wait this long is reported once, with the ranks it waits for: slow is not dead, but worth a
// line.
inline constexpr auto kStragglerAfter = 10s;

// A worker for users' callbacks goes after this long without one.
inline constexpr auto kCallbackWorkerIdle = 5s;
// What callbacks that still run are granted when the process exits.
inline constexpr auto kCallbackPatience = 2s;
// What a closing group grants the kernel to deliver what its tcp channels have sent.
inline constexpr auto kTcpLinger = 2s;

// A monitored barrier asks the store this often, and grants rank 0's verdict this much more than
// its own timeout to reach the others.
inline constexpr auto kStorePollMin = 1ms;
inline constexpr auto kStorePollMax = 20ms;
inline constexpr auto kVerdictPatience = 1s;

// The arena. Allocations of this size and more are worth a place in it: from here on reducing in
// place is ahead of frames, and a page's rounding is at most a sixteenth.
inline constexpr size_t kArenaThresholdBytes = 64 * 1024;
// A gradient of this size and more travels on its own instead of being copied into its bucket: an
// operation more costs some microseconds, and from here on it lies in the arena by itself.
inline constexpr size_t kGradientAloneBytes = kArenaThresholdBytes;
// As torch's.
inline constexpr size_t kFirstBucketBytes = 1024 * 1024;
// A bucket's size is tried for this many backwards after one that is not counted, and has to be
// this much faster than the default: less is noise.
inline constexpr int kTrialBackwards = 3;
inline constexpr double kTrialGain = 0.03;
// Looking how much memory is left costs about as much as touching 30 pages; done once for this
// much.
inline constexpr size_t kArenaGrantBytes = 64 * 1024 * 1024;
// What the arena leaves to everybody else before it answers that there is no memory.
inline constexpr size_t kArenaReserveBytes = 128 * 1024 * 1024;
// Memory of a peer's arena is made ready for use here in pieces of this size; its state is one bit.
inline constexpr size_t kArenaGranuleBytes = 64 * 1024;
// Most that is made ready in one call to the kernel, some 5 ms: other threads of the process, such
// as the one that answers pings, cannot map memory meanwhile.
inline constexpr size_t kArenaEnterBytesMax = 64 * 1024 * 1024;
// Under a limit of address space each process maps its own arena and its peers'.
inline constexpr size_t kArenaAddressShare = 8;
// How long fork waits for the child to copy what is in use; some 2 GB/s.
inline constexpr auto kForkPatience = 30s;

inline constexpr auto kConnectTimeout = 60s;
// A listener was there before its address was published, so the kernel answers within a round trip.
// Lost packets are sent again after 1, 3, 7, 15 and 31 s.
inline constexpr auto kReachTimeout = 60s;
// A waiting rank asks the store this often whether another has failed; one request each.
inline constexpr auto kSetupSlice = 250ms;
// Pauses between two questions for a key: the first, and the longest; a TCPStore answers some
// 10 000 questions a second, and all ranks may wait for the last one.
inline constexpr auto kSetupPauseFirst = 100us;
inline constexpr auto kSetupPause = 20ms;
inline constexpr auto kSetupPausePerRank = 250us;
// A rank that fails says why in the store, some milliseconds before or after its sockets close.
inline constexpr auto kSetupEchoPatience = 500ms;
inline constexpr int kTcpConnections = 2;
// What a receiver reads beyond the bytes it asked for: a small frame whole, behind the end of a
// large one the next header.
inline constexpr size_t kTcpReadAheadBytes = 4096;
// What the kernel holds of a connection that is not acknowledged, where a round trip takes at most
// kTcpNear: twice this is 5 GB/s there and still lies in a cache. By itself the kernel grows it to
// megabytes. On longer ways it needs them. Collectives only: streams of messages both ways took 1.2
// to 3 times as long with it.
inline constexpr int kTcpSendBytesNear = 256 * 1024;
inline constexpr auto kTcpNear = 200us;
inline constexpr int kRecorderEntries = 1024;

// The engine looks after what a device does: the first looks with a yield each, the later ones with
// this nap, which is what a collective on CPU tensors behind it may start late by.
inline constexpr int kAttendYields = 100;
inline constexpr auto kAttendNap = 50us;
// Between looks of a progress thread whose group is dead: nobody waits for it but the shutdown,
// which wakes it.
inline constexpr auto kFailedRest = 1s;
// Calls on a device that a rank's host may be ahead of the slowest peer's host, beyond which it
// waits. Each costs a cache line of host memory for each rank.
inline constexpr uint64_t kDeviceTicketsMax = 256;
// CUDA: stream memory operations in one call of the driver, which takes fewer than 256. And what an
// allocation must be a multiple of to have a block of cudaMalloc to itself: a handle for other
// processes stands for the block.
inline constexpr size_t kWordOperationsMax = 128;
inline constexpr size_t kIpcBlockBytes = 2 * 1024 * 1024;

// The memory of a group on one GPU: this much for all its ranks there, with the steps in which a
// GPU gives memory out; and at most so much of a tensor in a piece: beyond it a hand-over between
// ranks, some tens of us, is lost in the time of the copies.
inline constexpr size_t kDevicePoolBytes = 64 * 1024 * 1024;
inline constexpr size_t kDevicePoolStep = 2 * 1024 * 1024;
inline constexpr size_t kDeviceSlotBytesMax = 8 * 1024 * 1024;
inline constexpr size_t kDeviceSlotBytesMin = 64 * 1024;
// Where every rank has a GPU of its own, what all ranks may push to one of them in one all_reduce:
// 256 KiB of each of 8 ranks, where pushing whole tensors begins to cost more than a second
// meeting. An estimate, for some 4 us a meeting and 300 GB/s a GPU.
inline constexpr size_t kPeerPushedBytes = 2 * 1024 * 1024;
// Where the user has chosen an algorithm, what a block of its kernel sends to a peer at once: 32
// blocks with four such pieces on the way to each of 7 peers take some 4 MiB.
inline constexpr size_t kPeerLanePieceBytes = 4 * 1024;
// Until the ranks have passed descriptors and each has read what every other wrote on its GPU; a
// first use of a GPU may take seconds. And how long memory that is given up waits for streams and
// peers that still use it, before it is left to the end of the process.
inline constexpr auto kDeviceSetupTimeout = 30s;
inline constexpr auto kDevicePatience = 2s;

// Groups that hand on to another backend between hosts, torch/hierarchy.h. Below this many bytes an
// all_reduce goes through one rank of each host: a share of it would take a latency to cross, not
// its bytes.
inline constexpr size_t kSharedBytesMin = 64 * 1024;
// What a half's own deadline is beyond the operation's: the group's comes first and names ranks.
// The groups of the halves are set up within this, since all ranks have just met. And how often
// another backend is asked whether it has failed.
inline constexpr auto kHalfPatience = 10s;
inline constexpr auto kHalfConnectTimeout = 60s;
inline constexpr auto kHalfAskedEvery = 100ms;

}  // namespace pycomm
