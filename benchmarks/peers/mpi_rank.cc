// SPDX-License-Identifier: MIT
// A rank on whatever MPI it is compiled against, started by that MPI's mpiexec.
#include <mpi.h>

#include "rank.h"

namespace {

// Variables in which launchers tell a process its rank before MPI_Init: ranks are pinned before the
// library makes threads or measures anything.
void pin_before_start() {
  for (const char* name : {"PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"}) {
    if (const char* rank = std::getenv(name)) return pin_in_turn(std::atoi(rank));
  }
}

class MpiContender final : public peers::Contender {
 public:
  MpiContender() {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &world_);
  }
  int rank() const override { return rank_; }
  int world() const override { return world_; }
  std::string version() const override {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    const std::string all(text);  // up to its null: some count that in
    return all.substr(0, all.find_first_of("\n,"));
  }

  std::string prepare(const peers::Cell& cell, std::byte* in, std::byte* out) override {
    type_ = type_of(cell.dtype);
    if (type_ == MPI_DATATYPE_NULL) return "this MPI has no " + cell.dtype;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    in_ = in;
    out_ = out;
    count_ = static_cast<int>(cell.count);
    block_ = static_cast<int>(cell.block);
    which_ = cell.collective;
    call_ = kind_of(cell.collective);
    return call_ == Kind::unknown ? "no such collective" : "";
  }
  void barrier() override { MPI_Barrier(MPI_COMM_WORLD); }
  void call() override {
    const int code = run();
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw std::runtime_error(which_ + ": " + std::string(text, static_cast<size_t>(length)));
  }

 private:
  enum class Kind {
    all_reduce,
    broadcast,
    all_gather,
    reduce_scatter,
    all_to_all,
    barrier,
    unknown
  };

  static Kind kind_of(const std::string& name) {
    if (name == "all_reduce") return Kind::all_reduce;
    if (name == "broadcast") return Kind::broadcast;
    if (name == "all_gather") return Kind::all_gather;
    if (name == "reduce_scatter") return Kind::reduce_scatter;
    if (name == "all_to_all") return Kind::all_to_all;
    if (name == "barrier") return Kind::barrier;
    return Kind::unknown;
  }
  static MPI_Datatype type_of(const std::string& dtype) {
    if (dtype == "float32") return MPI_FLOAT;
    if (dtype == "float64") return MPI_DOUBLE;
    if (dtype == "int8") return MPI_INT8_T;
    if (dtype == "int32") return MPI_INT32_T;
    if (dtype == "int64") return MPI_INT64_T;
#ifdef MPIX_C_FLOAT16
    if (dtype == "float16") return MPIX_C_FLOAT16;
#endif
#ifdef MPIX_BFLOAT16
    if (dtype == "bfloat16") return MPIX_BFLOAT16;
#endif
    return MPI_DATATYPE_NULL;
  }
  int run() {
    const MPI_Comm all = MPI_COMM_WORLD;
    switch (call_) {
      case Kind::all_reduce:
        return MPI_Allreduce(MPI_IN_PLACE, in_, count_, type_, MPI_SUM, all);
      case Kind::broadcast:
        return MPI_Bcast(in_, count_, type_, 0, all);
      case Kind::all_gather:
        return MPI_Allgather(in_, block_, type_, out_, block_, type_, all);
      case Kind::reduce_scatter:
        return MPI_Reduce_scatter_block(in_, out_, block_, type_, MPI_SUM, all);
      case Kind::all_to_all:
        return MPI_Alltoall(in_, block_, type_, out_, block_, type_, all);
      default:
        return MPI_Barrier(all);
    }
  }

  int rank_ = 0, world_ = 1;
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
  std::byte *in_ = nullptr, *out_ = nullptr;
  int count_ = 0, block_ = 0;
  Kind call_ = Kind::unknown;
  std::string which_;
};

}  // namespace

int main(int argc, char** argv) {
  pin_before_start();
  MPI_Init(&argc, &argv);
  try {
    MpiContender contender;
    peers::serve(contender);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
