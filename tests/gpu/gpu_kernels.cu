// SPDX-License-Identifier: MIT
// Every kernel on a real GPU: `gpu_kernels check` compares each with the same body run by the CPU,
// byte for byte, `gpu_kernels check alone` only those that wait for nobody; `gpu_kernels measure
// COMMIT` prints JSON: times, and rates beside a device-to-device copy. Exits with 77 where there
// is no device, with 1 where something differs.
#include "gpu_memory.cuh"

using namespace gpu;

int main(int argc, char** argv) {
  int error = 0;
  if (cuda_device_count(&error) == 0) {
    std::printf("no CUDA device: error %d, %s\n", error, cuda_error_text(error));
    return 77;
  }
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") {
    const char* const given = std::getenv("PYCOMM_TEST_SEED");
    const unsigned seed =
        given ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : 20261121;
    Tally tally;
    check_kernels(tally, seed);
    if (argc < 3 || std::string(argv[2]) != "alone") check_peers(tally, seed);
    must(cudaDeviceSynchronize(), "the last kernel");
    std::printf("PYCOMM_TEST_SEED=%u: %d passed, %d failed\n", seed, tally.passed, tally.failed);
    return tally.failed != 0;
  }
  if (what != "measure") {
    std::fprintf(stderr, "usage: gpu_kernels check [alone] | measure COMMIT\n");
    return 2;
  }
  cudaDeviceProp device{};
  int driver = 0, runtime = 0;
  must(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const double copy_gbs = measure_copy_gbs();
  const std::string rows = measure_kernels(copy_gbs) + measure_peers(copy_gbs);
  std::printf(
      "{\"device\": \"%s\", \"driver\": %d, \"runtime\": %d, \"commit\": \"%s\", "
      "\"copy_gbs\": %.0f, \"rows\": [\n%s\n]}\n",
      device.name, driver, runtime, argc > 2 ? argv[2] : "unknown", copy_gbs,
      rows.substr(0, rows.rfind(',')).c_str());
  return 0;
}
