"""Importing this makes `ccl` torch.distributed's default group, where a launcher started several
ranks; for programs that leave that to Transformers or Accelerate, which know no `ccl`.

Import it before TrainingArguments or Accelerator are made: they use a group that is there.
"""

import os

import torch.distributed

import intel_ft.distributed.oneccl  # noqa: F401  registers it, and gives torch the ranks of MPI

if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    torch.distributed.init_process_group("ccl")
