# SPDX-License-Identifier: MIT
"""What every test folder shares. Being here also puts this folder's ranks.py on the import path."""

import os

# Before torch is imported: many ranks share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# A developer's own settings must not decide what the tests measure.
for _name in [name for name in os.environ if name.startswith("PYCOMM_")]:
    if not _name.startswith(("PYCOMM_TEST_", "PYCOMM_CPU", "PYCOMM_CUDA")):
        del os.environ[_name]
