"""Importing this creates torch.distributed's default group with `ccl`, if there are several ranks.

For programs that leave this to Transformers or Accelerate, which do not know `ccl`. Import it
before you create TrainingArguments or an Accelerator: both use an existing group.
"""

import os

import torch.distributed
from torch.distributed.distributed_c10d import default_pg_timeout

import intel_ft.distributed.oneccl  # noqa: F401  registers ccl, and passes MPI's ranks to torch
from intel_ft.distributed.rendezvous import address_from_environment, meet

if (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
    rank = int(os.environ["RANK"])
    store = meet(rank, size, address_from_environment(), default_pg_timeout)
    torch.distributed.init_process_group("ccl", store=store, rank=rank, world_size=size)
