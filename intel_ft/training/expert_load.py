"""How evenly the tokens of a run are spread over a mixture's experts: metrics and a file.

Entropy is that of the experts' shares of a layer's tokens over its largest value, log(experts): 1
if all experts get the same, 0 if one gets all.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from intel_ft.distributed.world import World
from intel_ft.files import write_json
from intel_ft.models.routing import Routing

FILE = "expert_load.json"


@dataclass(eq=False)
class ExpertLoad:
    """The counts of all ranks since this process began to train.

    total int64 [layers, experts]: pairs of token and expert.
    """

    routing: Routing
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros_like(self.routing.counts)

    def log_interval(self, world: World) -> dict[str, float]:
        """The fields of a metrics.jsonl line, from here on of a new interval. All ranks call it."""
        counts = world.all_reduce(self.routing.take_counts())
        self.total += counts
        return load_metrics(counts)

    def save(self, run: Path) -> None:
        """Write expert_load.json: the tokens of each expert of each layer, and each entropy."""
        write_json(
            run / FILE,
            {
                "layers": self.routing.layers,
                "tokens": self.total.tolist(),
                "entropy": [round(value, 4) for value in entropy(self.total).tolist()],
            },
        )

    def unused(self) -> str | None:
        """A note on experts that got no token, or None."""
        none = (self.total == 0).sum(1)
        if not int(none.sum()):
            return None
        layers = [
            f"{layer} ({int(count)})"
            for layer, count in zip(self.routing.layers, none, strict=True)
            if count
        ]
        return (
            f"{int(none.sum())} of {self.total.numel()} experts received no token in this run and"
            f" were not trained: {', '.join(layers[:4])}{', ...' if len(layers) > 4 else ''}"
        )


def load_metrics(counts: Tensor) -> dict[str, float]:
    """Of counts [layers, experts]: entropy, the largest load over the mean, unused experts."""
    spread = entropy(counts)
    mean = counts.double().mean(1).clamp(min=1e-9)
    return {
        "expert_entropy": float(spread.mean()),
        "expert_entropy_min": float(spread.min()),
        "expert_load_max": float((counts.max(1).values / mean).max()),
        "experts_unused": int((counts == 0).sum()),
    }


def entropy(counts: Tensor) -> Tensor:
    """Of each layer's shares, over log(experts): float64 [layers]; 1 for a layer of one expert."""
    experts = counts.shape[1]
    if experts == 1:
        return torch.ones(len(counts), dtype=torch.float64)
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    of_layers: Tensor = torch.special.entr(shares).sum(1) / math.log(experts)
    return of_layers
