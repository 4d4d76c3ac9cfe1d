// SPDX-License-Identifier: MIT
// Runs one operation: a program over channels, one segment at a time, never blocking.
//
// advance() does what can be done now and returns. So N ranks can be stepped in one thread in any
// order, and a thread that waits decides itself how. An Executor is reused for one operation after
// the other and keeps its scratch memory, and what it has laid out while operations have one shape.
// One thread at a time; the mesh and the operation's memory belong to others and must outlive the
// run.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/cut.h"
#include "engine/operation.h"
#include "engine/program.h"
#include "engine/signature.h"
#include "transport/mesh.h"

namespace pycomm {

class Executor {
 public:
  enum class Progress { blocked, moved, done, failed };

  Executor(Mesh& mesh, const Cut& cut) : mesh_(mesh), cut_(cut) {}
  // Frames as the mesh has them, tensors in one piece.
  explicit Executor(Mesh& mesh)
      : Executor(mesh, cut_for(mesh.world_size(), mesh.segment_bytes(), false, true)) {}
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Programs must stay where they are for as long as the executor lives.
  void start(const Program& program, const Operation& operation);
  Progress advance();

  const Failure& failure() const { return failure_; }
  // The peers whose frames, or whose room for ours, it is waiting for.
  std::vector<int> awaited() const;
  // Looks at every incoming lane for a frame of this very operation that contradicts it, though
  // this rank expects nothing there (two ranks that disagree about the root). True when it failed
  // over one.
  bool find_contradiction();
  // After a failure: peers may still work on the memory that references lead to, so the arena never
  // gives it out again.
  void quarantine_windows();

 private:
  struct Chunk {
    std::byte* data = nullptr;
    size_t bytes = 0;
    size_t count = 0;
    size_t segment_bytes = 1;  // a multiple of the element's size
  };
  // How a send's chunk travels.
  enum class Passage : uint8_t {
    undecided,
    payload,   // a copy, segment by segment
    referred,  // as one reference, which the peer has not consumed yet
    placed,    // not at all: a fold writes it into the peer's memory
  };
  struct Cursor {
    uint32_t done = 0;   // segments
    uint32_t total = 0;  // segments, at least one: an empty chunk travels as an empty frame
    Passage passage = Passage::undecided;
  };
  enum class Pass { as_payload, later, last_done };

  bool has_shape_of(const Program& program, const Operation& operation) const;
  void move_chunks_to(const Operation& operation);
  void begin_signature();
  void lay_out_chunks();
  void lay_out_cursors();
  void rewind_cursors();
  bool begin_next_slice();
  bool takes_rest_whole() const;
  bool ready(size_t index) const;
  bool step(size_t index);
  bool send(size_t index);
  bool receive(const Instruction& one, uint32_t segment);
  bool fold(const Instruction& one, uint32_t segment);
  void finish_fold(const Instruction& one, uint32_t segment);
  bool reduce_local(const Instruction& one, uint32_t segment);
  bool copy(const Instruction& one, uint32_t segment);
  bool peek(const Instruction& one, int peer, uint32_t segment, ReceivedFrame& frame);
  void consume(int peer);
  // References and answers in place: executor_windows.cc.
  bool answered_in_place(const Instruction& one) const;
  bool may_refer_to_all() const;
  bool promised(const Instruction& one) const;
  size_t reference_bytes_min(const Instruction& one) const;
  bool ready_whole(size_t index) const;
  Pass pass_whole(size_t index);
  void refer(size_t index);
  bool answer_is_here(const Instruction& one) const;
  // Chunks that travel encoded: executor_wire.cc.
  bool send_encoded(const Instruction& one, uint32_t segment);
  bool receive_encoded(const Instruction& one, uint32_t segment);
  bool fold_encoded(const Instruction& one, uint32_t segment);
  void lay_out_images();
  size_t encoded_size(const Chunk& chunk, uint32_t segment) const;
  std::byte* image_of(const Instruction& one, uint32_t segment);
  size_t segment_size(const Chunk& chunk, uint32_t segment) const;
  OpSignature signature_for(const Chunk& chunk) const;
  bool flush();

  Mesh& mesh_;
  const Cut cut_;
  const Program* program_ = nullptr;
  const Operation* operation_ = nullptr;
  OpSignature signature_;
  size_t element_bytes_ = 1;
  std::byte* tensor_ = nullptr;  // where the chunks of a whole tensor point into
  bool sliced_ = false;
  size_t slice_begin_ = 0,
         slice_count_ = 0;  // elements: where the slice at hand is, how long it is
  // Of a first slice: whether this rank gives all peers references to it, and how many peers do.
  bool refers_to_all_ = false;
  int peers_refer_to_all_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<Cursor> cursors_;
  size_t first_ = 0;       // instructions before it are done
  bool referred_ = false;  // a reference has left since advance() began
  // By peer, in this operation. Chunks of one size look alike; by its number a lost frame is
  // missed.
  std::vector<uint32_t> sent_frames_, received_frames_;
  std::vector<std::byte> scratch_;
  std::vector<ReceivedFrame> frames_;  // of a fold, by operand
  std::vector<const void*> sources_;
  std::vector<void*> answers_;  // where peers wait for what a fold makes
  std::vector<std::byte> images_;
  std::vector<size_t> image_at_;  // by chunk: where in images_ its encoding is kept
  // Of a fold of encoded operands, by operand: one of the two is null.
  std::vector<const std::byte*> encoded_;
  std::vector<const float*> plain_;
  Failure failure_;
};

}  // namespace pycomm
