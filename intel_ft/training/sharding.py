"""Weights that the ranks share: each keeps a part of every weight, gradient and optimizer state.

PyTorch's FSDP2 (`fully_shard`) gathers a layer's weights while it computes and reduces its
gradients to their parts afterwards. All ranks have to compute the same number of rows. Accelerate's
plugin for it has no effect on CPUs (1.15: AcceleratorState keeps it only where there are GPUs), so
`fully_shard` is called here. Checkpoints hold the parts as torch.distributed.checkpoint writes
them, in safetensors files, and are read by any number of ranks.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from intel_ft.decisions import Decision
from intel_ft.distributed.world import World
from intel_ft.errors import UserError
from intel_ft.host.allocator import return_large_blocks
from intel_ft.models.loss import plain_head

FOLDER = "shards"
STATE, BEST = "state", "best"
"""Folders in it: weights and moments; the weights of the best evaluation."""

FILE_BYTES = 128 * 2**20
"""Bytes of a file of a checkpoint, unless one tensor has more."""

_WEIGHT = "weight"

Tensors = dict[str, Tensor]


class _Root(torch.nn.Module):
    """Owns what lies outside layers and embeddings (head, last norm), whole while it computes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """Call the function, which may use any part of the network."""
        return function()


@dataclass(frozen=True)
class Shards:
    """The parts of the weights of `network` that this rank keeps.

    root: the module that gathers them; None in a world of one rank, which keeps all.
    """

    network: Any
    world: World
    root: Any = None

    def compute(self, function: Callable[[], Tensor]) -> Tensor:
        """The function's result, with weights gathered as it needs them; all ranks call it."""
        if self.root is None:
            return function()
        result: Tensor = self.root(function)
        if not torch.is_grad_enabled():  # no backward follows, after which FSDP would do this
            self.root.reshard()
        return result

    def weights(self) -> Tensors:
        """This rank's parts of the weights that train, by name; not copies."""
        return {n: w for n, w in self.network.named_parameters() if w.requires_grad}

    def state(self, optimizer: Any) -> Tensors:
        """This rank's parts of the weights that train and of the optimizer's moments."""
        names = {weight: name for name, weight in self.weights().items()}
        state = {f"{_WEIGHT}.{name}": weight for weight, name in names.items()}
        for weight, moments in optimizer.state.items():
            for key, value in moments.items():
                if _is_moment(value):
                    state[f"{key}.{names[weight]}"] = value
        return state

    def write(self, folder: Path, tensors: Tensors) -> None:
        """Write the parts of all ranks into `folder`; all ranks call it.

        Each rank writes several files: the writer has two copies of a file in memory.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = HuggingFaceStorageWriter(str(folder), _files(tensors), save_distributed=True)
        save(tensors, storage_writer=writer, no_dist=self.world.size == 1)

    def read(self, folder: Path, tensors: Tensors) -> None:
        """Fill the tensors, parts of this rank, from what any number of ranks wrote."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = HuggingFaceStorageReader(str(folder))
        load(tensors, storage_reader=reader, no_dist=self.world.size == 1)

    def read_weights(self, checkpoint: Path) -> Tensors | None:
        """Load the weights of a checkpoint in place; returns a copy of its best ones, or None."""
        weights, folder = self.weights(), checkpoint / FOLDER
        self.read(folder / STATE, {f"{_WEIGHT}.{n}": weight for n, weight in weights.items()})
        if not (folder / BEST).is_dir():
            return None
        best = {name: torch.zeros_like(weight).detach() for name, weight in weights.items()}
        self.read(folder / BEST, best)
        return best

    def read_moments(self, checkpoint: Path, saved: Any, optimizer: Any) -> Any:
        """The optimizer's saved state (`without_moments`) with this rank's parts of its moments."""
        names = {weight: name for name, weight in self.weights().items()}
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        tensors, state = {}, {}
        for index, values in saved["state"].items():
            weight = weights[index]
            state[index] = dict(values)
            for key in (key for key, value in values.items() if value is None):
                moment = torch.zeros_like(weight).detach()
                state[index][key] = tensors[f"{key}.{names[weight]}"] = moment
        if tensors:
            self.read(checkpoint / FOLDER / STATE, tensors)
        return {**saved, "state": state}

    def gathered(self) -> Any:
        """The network with whole trained weights, to be saved and not to be computed with.

        All ranks call it. An adapter's weights are put in place of their parts. Of a model that
        trains in full, rank 0 gets another one, in bf16.
        """
        if self.root is None:
            return self.network
        adapter = isinstance(self.network, PeftModel)
        whole = {}
        for name, weight in self.weights().items():
            full = weight.full_tensor().detach() if isinstance(weight, DTensor) else weight.detach()
            if adapter:
                module, _, last = name.rpartition(".")
                setattr(self.network.get_submodule(module), last, torch.nn.Parameter(full))
            elif self.world.rank == 0:
                whole[name] = full.to(torch.bfloat16)
        if adapter or self.world.rank:
            return self.network
        buffers = {n: b for n, b in self.network.state_dict().items() if not _is_sharded(b)}
        with torch.device("meta"):
            model = type(self.network)(self.network.config).to(torch.bfloat16)
        model.load_state_dict(buffers | whole, strict=False, assign=True)
        model.tie_weights()
        model.generation_config = self.network.generation_config
        return model


def shard(network: Any, world: World, dtype: torch.dtype, *, trains_all: bool) -> Shards:
    """Split the weights of `network` over the ranks, each layer's as one unit, in place.

    If all weights train, each rank's parts become float32, and they are gathered and multiplied in
    `dtype`; frozen weights stay as they are. Raises UserError for a model that names no layers.
    """
    if world.size == 1:
        return Shards(network, world)
    plain_head(network)  # tries the model once, which must not happen inside a layer's gathering
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    kinds = set(base._no_split_modules or ())
    layers = [module for module in network.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(f"backend.shard: {type(base).__name__} does not name its layers")
    return_large_blocks()
    root = _Root(network)
    mesh = init_device_mesh("cpu", (world.size,))
    mixed = trains_all and dtype != torch.float32
    policy = MixedPrecisionPolicy(dtype if mixed else None, torch.float32)
    for module in [*reversed(layers), *_embeddings(base), root]:
        unit: Any = fully_shard(module, mesh=mesh, mp_policy=policy)
        # The step divides the loss by a count of the global batch, so gradients add up.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    if trains_all:
        root.float()
    return Shards(network, world, root)


def _embeddings(base: Any) -> list[Any]:
    """The embeddings as a unit of their own, unless the head shares their weight."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    return [] if head is None or head.weight is embeddings.weight else [embeddings]


def describe(world: World) -> Decision:
    """That weights are sharded."""
    if world.size == 1:
        return Decision("backend.shard", "off", "one rank keeps all weights")
    return Decision("backend.shard", f"1/{world.size} per rank", "set in the config")


def _files(tensors: Tensors) -> dict[str, int]:
    """The number of the file, from 1, that each tensor is written to."""
    files, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        part = tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes
        if size and size + part > FILE_BYTES:
            number, size = number + 1, 0
        files[name], size = number, size + part
    return files


def without_moments(state: Any) -> Any:
    """An optimizer's state_dict with None in place of each moment, which is written in parts."""
    of_weights = {
        index: {key: None if _is_moment(value) else value for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": of_weights}


def move_parts(staged: Path, folder: Path) -> None:
    """Move what all ranks wrote into `staged` to `folder`, in place of what is there."""
    folder.mkdir(exist_ok=True)
    for part in sorted(staged.iterdir()):
        shutil.rmtree(folder / part.name, ignore_errors=True)
        part.rename(folder / part.name)
    staged.rmdir()


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _is_sharded(value: Any) -> bool:
    return isinstance(value, DTensor)
