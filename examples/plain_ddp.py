"""DistributedDataParallel over oneCCL: one more import than over gloo.

mpirun -n 2 python examples/plain_ddp.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import intel_ft.distributed.oneccl  # noqa: F401  registers the backend "ccl"

dist.init_process_group("ccl")

torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

torch.manual_seed(1 + dist.get_rank())  # each rank has different examples
for _ in range(20):
    inputs = torch.randn(32, 64)
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

weights = sum(parameter.double().sum().item() for parameter in model.parameters())
print(f"rank {dist.get_rank()} of {dist.get_world_size()}, {dist.get_backend()}: {weights!r}")
dist.destroy_process_group()
