"""A weight that is trained as it will be stored: rounded to 4 bits in forward, smooth in backward.

    w = W + D, or W + B A            the weight, and a correction that rounding absorbs
    q = clamp(round(w / s + z))      codes of 4 bits, with a scale s and a zero point z per group
    weight = (q - z) * s

round() passes gradients through unchanged (the straight-through estimator, Bengio et al. 2013), so
that s, z and the correction learn: s as in LSQ (Esser et al. 2020), A and B as in NNCF's FQ_LORA,
or a whole matrix D. What is stored is q, s and z alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize

from intel_ft.artifacts.ir_weights import Bytes, CompressedTensor, dequantize
from intel_ft.errors import IntelFTError
from intel_ft.layers.compressed import codes_of

Stored = tuple[Any, Any, Bytes | None]
"""Codes int [out, in], scales float32 [out, groups], zero points uint8 [out, groups] or None."""


class FakeQuantized(torch.nn.Module):
    """A parametrization of a weight [out, in]; inactive, it is the weight itself.

    rank: of the correction; 0 is a whole matrix.

    Active, it is the weight as stored between `start_step` and `finish_step`, so that a step of
    several examples rounds it once and goes back through the rounding once.
    """

    def __init__(self, tensor: CompressedTensor, rank: int) -> None:
        super().__init__()
        rows, size = tensor.shape
        self.active = False
        self._current: Tensor | None = None
        self._range = (-8, 7) if tensor.signed else (0, 15)
        self.start: Tensor
        self.register_buffer("start", torch.from_numpy(tensor.scales).float())
        self.log_scale = torch.nn.Parameter(torch.zeros(tensor.scales.shape))
        zeros = None if tensor.zeros is None else torch.from_numpy(tensor.zeros).float()
        self.zero = None if zeros is None else torch.nn.Parameter(zeros)
        self.whole = torch.nn.Parameter(torch.zeros(rows, size)) if rank == 0 else None
        if rank:
            self.a = torch.nn.Parameter(torch.randn(rank, size) / size**0.5)
            self.b = torch.nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it will be stored, in its own dtype."""
        return weight if not self.active or self._current is None else self._current

    def start_step(self, weight: Tensor) -> None:
        """Round the weight with the present parameters."""
        with torch.no_grad():
            self._current = self.values(weight).to(weight.dtype)
        self._current.requires_grad_()

    def finish_step(self, weight: Tensor) -> None:
        """Add the step's gradients to those of the parameters."""
        if self._current is not None and self._current.grad is not None:
            torch.autograd.backward(self.values(weight), self._current.grad.float())
        self._current = None

    def stored(self, weight: Tensor) -> Stored:
        """What is written into the IR."""
        with torch.no_grad():
            scales, zeros = self._scales(), self._zeros()
            codes = self._codes(weight, scales, zeros).to(torch.int8)
        return (
            codes.view(weight.shape).numpy(),
            scales.numpy(),
            None if zeros is None else zeros.to(torch.uint8).numpy(),
        )

    def values(self, weight: Tensor) -> Tensor:
        """The weight as it will be stored, float32, as a function of the parameters."""
        scales, zeros = self._scales(), self._zeros()
        codes = self._codes(weight, scales, zeros)
        if zeros is not None:
            codes = codes - zeros[..., None]
        return (codes * scales[..., None]).view(weight.shape)

    def _codes(self, weight: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
        if self.whole is None:
            corrected = torch.addmm(weight.float(), self.b, self.a)
        else:
            corrected = weight.float() + self.whole
        return codes_of(corrected, scales, zeros, self._range, _round)

    def _scales(self) -> Tensor:
        """As the IR stores them, in float16."""
        scales: Tensor = self.start * self.log_scale.exp()
        return scales + (scales.half().float() - scales).detach()

    def _zeros(self) -> Tensor | None:
        return None if self.zero is None else _round(self.zero.clamp(*self._range))


class _Fixed(torch.nn.Module):
    """A weight that the IR keeps in 8 bits, which is not trained."""

    def __init__(self, tensor: CompressedTensor) -> None:
        super().__init__()
        self.active = False
        self.stored: Tensor
        self.register_buffer("stored", torch.from_numpy(dequantize(tensor)))

    def forward(self, weight: Tensor) -> Tensor:
        return self.stored.to(weight.dtype) if self.active else weight


def quantize_in_place(
    model: Any, weights: dict[str, CompressedTensor], rank: int
) -> dict[str, FakeQuantized]:
    """Parametrize every weight of the model that the IR compresses; those of 4 bits by module.

    Raises IntelFTError where a weight of the IR belongs to no layer of the model in torch.
    """
    modules = dict(model.named_modules())
    shared: dict[int, Any] = {}
    trained = {}
    for name, tensor in weights.items():
        module = modules.get(name)
        weight = getattr(module, "weight", None)
        if weight is None or tuple(weight.shape) != tensor.shape:
            raise IntelFTError(
                f"{name} is compressed in the IR, but the torch model has no such layer"
            )
        shape = FakeQuantized(tensor, rank) if tensor.bits == 4 else _Fixed(tensor)
        shared[id(weight)] = shape
        if isinstance(shape, FakeQuantized):
            trained[name] = shape
    for module in modules.values():
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) in shared:  # tied embeddings twice
            parametrize.register_parametrization(module, "weight", shared[id(weight)], unsafe=True)
    return trained


def activate(model: Any, active: bool) -> None:
    """Let the model compute with weights as stored, or with its own."""
    for module in model.modules():
        if isinstance(module, FakeQuantized | _Fixed):
            module.active = active


def original(model: Any, name: str) -> Tensor:
    """The module's weight as loaded."""
    weight: Tensor = model.get_submodule(name).parametrizations.weight.original
    return weight


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of logits [tokens, vocabulary], summed, in nats."""
    return F.kl_div(
        F.log_softmax(student.float(), -1),
        F.log_softmax(teacher.float(), -1),
        reduction="sum",
        log_target=True,
    )


def _round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()
