"""What PyTorch builds on process groups, computed over a group: for comparison with gloo."""

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.checkpoint as checkpoint
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)


def results(group, folder):
    """Named tensors that each of torch's layers computes over the group."""
    mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("ranks",))
    return {
        **_functional(group),
        "DTensor": _dtensor(mesh),
        "tensor parallel": _tensor_parallel(mesh),
        "loss parallel": _loss_parallel(mesh),
        **_fsdp(mesh, group, folder),
    }


def _mine(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(dist.get_rank()))


def _model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def _functional(group):
    size = group.size()
    return {
        "all_reduce": functional.all_reduce(_mine(3), "sum", group),
        "all_gather": functional.all_gather_tensor(_mine(2, 3), 0, group),
        "reduce_scatter": functional.reduce_scatter_tensor(_mine(2 * size, 3), "sum", 0, group),
        "all_to_all": functional.all_to_all_single(_mine(size, 3), None, None, group),
        "broadcast": functional.broadcast(_mine(3), 0, group),
    }


def _dtensor(mesh):
    left = distribute_tensor(_mine(4, 6), mesh, [Shard(0)])
    right = distribute_tensor(_mine(6, 4), mesh, [Replicate()])
    return (left @ right).redistribute(mesh, [Shard(1)]).full_tensor()


def _tensor_parallel(mesh):
    model = parallelize_module(_model(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    torch.manual_seed(1)
    model(torch.randn(5, 8)).square().mean().backward()
    return model[0].weight.grad.full_tensor()


def _loss_parallel(mesh):
    torch.manual_seed(1)
    logits = distribute_tensor(torch.randn(4, 8, requires_grad=True), mesh, [Shard(1)])
    with loss_parallel():
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(4))
        loss.backward()
    return loss.full_tensor().detach()


def _fsdp(mesh, group, folder):
    model = _model()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(_mine(6, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {f"FSDP2 {name}": value.full_tensor() for name, value in model.named_parameters()}
    checkpoint.save(model.state_dict(), checkpoint_id=folder, process_group=group)
    read = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    checkpoint.load(read, checkpoint_id=folder, process_group=group)
    loaded = {f"checkpoint {name}": value.full_tensor() for name, value in read.items()}
    return trained | loaded
