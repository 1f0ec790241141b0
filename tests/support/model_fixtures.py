"""A model shape small enough to compare gradients of, and packed rows for it."""

import torch
from peft.tuners import lora

from intel_ft.batching.row import Row
from intel_ft.kernels import ops

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
        return x * ops.dropout(ones, self.rate, seed).view_as(x).to(x.dtype)


def same_dropout(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Let peft's own layers drop what the fused ones drop from the same state of torch's RNG."""
    for module in model.modules():
        if isinstance(module, lora.Linear):
            rate = module.lora_dropout["default"].p
            module.lora_dropout["default"] = SameDropout(rate, dtype)
