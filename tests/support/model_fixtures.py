"""A model shape small enough to compare gradients of, packed rows for it, and bounds for bf16."""

import torch
from peft.tuners import lora

from intel_ft.batching.row import Row
from intel_ft.config_method import MethodConfig
from intel_ft.kernels import ops
from intel_ft.models.adapter import add_lora, fuse
from intel_ft.models.loss import loss_sum

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
TWO_LAYERS = SHAPE | {"num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}


def row_of(*lengths: int) -> Row:
    """Segments of these lengths, about half of the tokens supervised."""
    torch.manual_seed(1)
    total = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.randint(3, 61, (total,))
    predict = [i for i in range(0, total - 1, 2) if i + 1 not in bounds]
    arrays = {
        "tokens": tokens,
        "positions": torch.cat([torch.arange(n) for n in lengths]),
        "bounds": bounds,
        "predict": torch.tensor(predict),
        "targets": tokens[torch.tensor(predict) + 1],
    }
    return Row(**{name: array.numpy() for name, array in arrays.items()})


def lora_gradients(model: torch.nn.Module) -> torch.Tensor:
    """The gradients of a new adapter on fused layers, its weights drawn from a fixed seed."""
    model = add_lora(model, MethodConfig(r=4, alpha=8), "base", None).train()
    fuse(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1, generator=generator)
    loss_sum(model, row_of(40, 60, 30), packed=True).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


class SameDropout(torch.nn.Module):
    """Dropout by autograd of the elements that `ops.dropout` drops in tensors of this dtype."""

    def __init__(self, rate: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.rate, self.dtype = rate, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        seed = int(torch.randint(2**32, ()))
        ones = torch.ones(x.flatten(0, -2).shape, dtype=self.dtype)
        kept = ops.dropout(ones, self.rate, seed).view_as(x) != 0
        return x * kept / (1 - self.rate)


def same_dropout(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Make peft's layers drop what the fused ones drop from the same state of torch's RNG."""
    for module in model.modules():
        if isinstance(module, lora.Linear):
            rate = module.lora_dropout["default"].p
            module.lora_dropout["default"] = SameDropout(rate, dtype)


BF16_EPS = torch.finfo(torch.bfloat16).eps


def distance(value: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the difference over the norm of `exact`."""
    return float((value.double() - exact.double()).norm() / exact.double().norm())


def assert_as_exact_as_plain(
    value: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, factor: float = 2.0
) -> None:
    """`value` is at most `factor` times as far from `exact` as plain torch's bf16 on this CPU.

    CPUs round at different places, so no fixed bound holds on all of them. A result that plain
    torch computes exactly may be off by one rounding.
    """
    error, bound = distance(value, exact), factor * distance(plain, exact) + BF16_EPS / 4
    assert error <= bound, f"{error:.2e} from the exact result, bound {bound:.2e}"


Step = tuple[float, dict[str, torch.Tensor]]
"""A step's loss and its gradients by parameter name."""


def assert_step_as_exact_as_plain(value: Step, plain: Step, exact: Step) -> None:
    """The same for a step: its loss, and each gradient by its own norm or a tenth of the whole."""
    rounding = BF16_EPS * abs(exact[0])
    assert abs(value[0] - exact[0]) <= 2 * abs(plain[0] - exact[0]) + rounding
    assert value[1].keys() == plain[1].keys() == exact[1].keys()
    errors = {name: (plain[1][name] - exact[1][name]).norm() for name in exact[1]}
    whole = torch.stack(list(errors.values())).norm()
    for name, gradient in value[1].items():
        error, bound = (gradient - exact[1][name]).norm(), 2 * (errors[name] + 0.1 * whole)
        assert error <= bound, f"{name}: {error:.2e}, bound {bound:.2e}"
