// SPDX-License-Identifier: MIT
// What the real Device says where there is no such GPU. tests/gpu does the rest where there is one.
#include "check.h"
#include "device/cuda_device.h"

using namespace pycomm;

TEST("a device that is not there is refused with the reason") {
  for (const int index : {-1, 4096}) {
    std::string why;
    CHECK(!open_cuda_device(index, &why), index);
    CHECK(why.find("CUDA") != std::string::npos, why);
  }
}
