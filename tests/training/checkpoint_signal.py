# SPDX-License-Identifier: MIT
"""A training script that is sent a signal: python checkpoint_signal.py FOLDER."""

import sys
import time

from checkpoint_runs import make_run, seed_all, train

from pycomm.checkpoint import Checkpointer

seed_all(1)
state = make_run()
with Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.on_signal()
    for step in train(state, 10**6):
        print(f"step {step}", flush=True)
        checkpointer.after_step(step, state)
        time.sleep(0.05 if step >= 4 else 0)
