"""The weights of a model's files, each read when it is asked for.

Weights in FP8 or MXFP4 are dequantized one by one, so that a published model never has to be in
memory as a whole in bf16 if its layers are converted one by one, too (models.streamed).

FP8 (DeepSeek-V3, Qwen3-FP8): E4M3 numbers with one factor for each block of a matrix,
`<name>_scale_inv`. MXFP4 (gpt-oss; OCP Microscaling Formats 1.0): two
E2M1 numbers per byte, the lower half first, and a power of two for each 32 of them, in
`<name>_blocks` [experts, out, groups, 16] and `<name>_scales` [experts, out, groups].
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intel_ft.errors import UserError
from intel_ft.models.weight_files import open_safetensors, weight_files

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SCALE, _BLOCKS, _EXPONENTS = "_scale_inv", "_blocks", "_scales"
_UNUSED = (_SCALE, _EXPONENTS, ".activation_scale", ".input_scale")
"""What belongs to another tensor. Scales of activations are for computing in FP8."""


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that is read when it is indexed, as Transformers reads slices of a file."""

    read: Callable[[], Tensor]

    def __getitem__(self, _: Any) -> Tensor:
        """The whole tensor; Transformers asks for `[...]`."""
        return self.read()


def lazy_weights(folder: Path, block: tuple[int, int] | None = None) -> dict[str, LazyTensor]:
    """The tensors of the model in `folder` by name, dequantized where they are FP8 or MXFP4.

    block: rows and columns of FP8's blocks.
    """
    files: dict[str, Path] = {}
    for path in weight_files(folder):
        with open_safetensors(path) as file:
            files |= dict.fromkeys(file.keys(), path)

    def read(name: str) -> Tensor:
        # Mapped for this tensor alone: with it go the pages, where an open file would keep them.
        with open_safetensors(files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    weights = {}
    for name in files:
        if block is not None and f"{name}{_SCALE}" in files:
            weights[name] = LazyTensor(partial(_read_fp8, read, block, name))
        elif name.endswith(_BLOCKS) and (base := name.removesuffix(_BLOCKS)) + _EXPONENTS in files:
            weights[base] = LazyTensor(partial(_read_mxfp4, read, base))
        elif not name.endswith(_UNUSED):
            weights[name] = LazyTensor(partial(read, name))
    return weights


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let Transformers read a weight when it needs it, and not all of them ahead in threads."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _read_fp8(read: Callable[[str], Tensor], block: tuple[int, int], name: str) -> Tensor:
    try:
        return dequantized_fp8(read(name), read(f"{name}{_SCALE}"), block)
    except ValueError as error:
        raise UserError(f"{name}: {error}: use the model in bf16") from None


def _read_mxfp4(read: Callable[[str], Tensor], name: str) -> Tensor:
    return dequantized_mxfp4(read(f"{name}{_BLOCKS}"), read(f"{name}{_EXPONENTS}"))


def dequantized_fp8(values: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """values [..., out, in] in FP8 times their block's scale, float32; blocks at edges are cut off.

    scales: [..., ceil(out / rows), ceil(in / columns)]. Raises ValueError for others.
    """
    sizes = [
        *values.shape[:-2],
        *(-(-n // b) for n, b in zip(values.shape[-2:], block, strict=True)),
    ]
    if list(scales.shape) != sizes:
        raise ValueError(
            f"FP8 weights {list(values.shape)} have scales {list(scales.shape)}, where blocks of "
            f"{block[0]} x {block[1]} have {sizes}"
        )
    by_weight = scales.float().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return values.float().mul_(by_weight[..., : values.shape[-2], : values.shape[-1]])


def dequantized_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """[experts, in, out] in bf16, the layout of gpt-oss's experts; see above for the arguments."""
    experts, outputs, groups, half = blocks.shape
    out = torch.empty(experts, groups * half * 2, outputs, dtype=torch.bfloat16)
    for expert in range(experts):  # indices are int64, eight times the codes
        pairs = _pairs()[blocks[expert].long()].flatten(2)
        exponents = scales[expert].int().sub_(127)[..., None]
        out[expert] = torch.ldexp(pairs, exponents).flatten(1).T
    return out


@cache
def _pairs() -> Tensor:
    """The two numbers of each byte, bf16 [256, 2]."""
    numbers = torch.tensor([*_E2M1, *(-one for one in _E2M1)], dtype=torch.bfloat16)
    codes = torch.arange(256)
    return torch.stack((numbers[codes & 15], numbers[codes >> 4]), dim=1)
