"""A model shape small enough to compare gradients of, and packed rows for it."""

import torch

from intel_ft.batching.row import Row

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
