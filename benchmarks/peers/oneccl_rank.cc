// SPDX-License-Identifier: MIT
// A rank on oneCCL's CPU half, started by Intel MPI's mpiexec. Ranks meet through a file in
// PEERS_FOLDER that holds rank 0's address.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <oneapi/ccl.hpp>
#include <optional>

#include "rank.h"

namespace {

int number(const char* name) {
  const char* text = std::getenv(name);
  if (!text) throw std::runtime_error(std::string(name) + " is not set: start it by mpiexec");
  return std::atoi(text);
}

ccl::shared_ptr_class<ccl::kvs> meet(int rank) {
  const std::string path = std::string(std::getenv("PEERS_FOLDER")) + "/oneccl";
  if (rank == 0) {
    auto store = ccl::create_main_kvs();
    const auto address = store->get_address();
    std::ofstream(path + ".part", std::ios::binary).write(address.data(), address.size());
    std::filesystem::rename(path + ".part", path);
    return store;
  }
  while (!std::filesystem::exists(path)) ::usleep(1000);
  ccl::kvs::address_type address;
  std::ifstream(path, std::ios::binary).read(address.data(), address.size());
  return ccl::create_kvs(address);
}

class OneCclContender final : public peers::Contender {
 public:
  OneCclContender(int rank, int world)
      : rank_(rank),
        world_(world),
        communicator_(ccl::create_communicator(world, rank, meet(rank))) {}
  int rank() const override { return rank_; }
  int world() const override { return world_; }
  std::string version() const override {
    return std::string("oneCCL ") + ccl::get_library_version().full;
  }
  std::string prepare(const peers::Cell& cell, std::byte* in, std::byte* out) override {
    const auto type = type_of(cell.dtype);
    if (!type) return "no " + cell.dtype;
    type_ = *type;
    cell_ = cell;
    in_ = in;
    out_ = out;
    return "";
  }
  void call() override { start().wait(); }
  void barrier() override { ccl::barrier(communicator_).wait(); }

 private:
  static std::optional<ccl::datatype> type_of(const std::string& dtype) {
    if (dtype == "float32") return ccl::datatype::float32;
    if (dtype == "float64") return ccl::datatype::float64;
    if (dtype == "float16") return ccl::datatype::float16;
    if (dtype == "bfloat16") return ccl::datatype::bfloat16;
    if (dtype == "int8") return ccl::datatype::int8;
    if (dtype == "int32") return ccl::datatype::int32;
    if (dtype == "int64") return ccl::datatype::int64;
    return std::nullopt;
  }
  ccl::event start() {
    const auto& name = cell_.collective;
    const auto sum = ccl::reduction::sum;
    if (name == "all_reduce") {
      return ccl::allreduce(in_, in_, cell_.count, type_, sum, communicator_);
    }
    if (name == "broadcast") return ccl::broadcast(in_, cell_.count, type_, 0, communicator_);
    if (name == "all_gather") {
      return ccl::allgather(in_, out_, cell_.block, type_, communicator_);
    }
    if (name == "reduce_scatter") {
      return ccl::reduce_scatter(in_, out_, cell_.block, type_, sum, communicator_);
    }
    if (name == "all_to_all") {
      return ccl::alltoall(in_, out_, cell_.block, type_, communicator_);
    }
    return ccl::barrier(communicator_);
  }

  int rank_, world_;
  ccl::communicator communicator_;
  peers::Cell cell_;
  ccl::datatype type_ = ccl::datatype::float32;
  std::byte *in_ = nullptr, *out_ = nullptr;
};

}  // namespace

int main() {
  try {
    const int rank = number("PMI_RANK"), world = number("PMI_SIZE");
    pin_in_turn(rank);
    ccl::init();
    OneCclContender contender(rank, world);
    peers::serve(contender);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
