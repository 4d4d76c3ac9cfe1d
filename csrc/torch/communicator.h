// SPDX-License-Identifier: MIT
// The plain array face: collectives on arrays of any library, without torch.distributed. The Python
// types behind pycomm.Communicator and the handles it returns.
//
// Bound with the C API and not with pybind11: at the smallest sizes finding the arguments would
// cost as much as the collective. A synchronous call runs on the caller's thread without the GIL.
// Methods may be called from any thread; their order must be the same on all ranks.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "torch/array_call.h"
#include "torch/backend.h"

namespace pycomm {

// One group on one rank, as the array face sees it.
class Communicator {
 public:
  explicit Communicator(c10::intrusive_ptr<Backend> backend) : backend_(std::move(backend)) {}
  // With the GIL, which it gives back while the group closes.
  ~Communicator();

  Engine& engine() { return backend_->engine(); }
  int rank() const { return backend_->getRank(); }
  int world_size() const { return backend_->getSize(); }
  void close(const std::string& reason, bool drain);
  // Keeps the arrays of a handle that nobody waits for until the operation has finished.
  void adopt(std::unique_ptr<ArrayCall> call);

 private:
  const c10::intrusive_ptr<Backend> backend_;
  std::vector<std::unique_ptr<ArrayCall>> adopted_;  // under the GIL
};

// Adds the types Communicator and ArrayWork to the module.
void bind_communicator(PyObject* module);

// A handle for a call that has been submitted; `communicator` is the Python object.
PyObject* make_array_work(PyObject* communicator, std::unique_ptr<ArrayCall> call);
PyObject* make_array_work_type(PyObject* module);
Communicator& communicator_of(PyObject* object);
// What a finished call returns.
PyObject* take_result(ArrayCall& call);

// Gives the GIL back for as long as it lives.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(state_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* const state_;
};

}  // namespace pycomm
