"""Importing this creates torch.distributed's default group with `ccl`, if there are several ranks.

For programs that leave this to Transformers or Accelerate, which do not know `ccl`. Import it
before you create TrainingArguments or an Accelerator: both use an existing group.
"""

import os

import torch.distributed

import intel_ft.distributed.oneccl  # noqa: F401  registers ccl, and passes MPI's ranks to torch

if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    torch.distributed.init_process_group("ccl")
