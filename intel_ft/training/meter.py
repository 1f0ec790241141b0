"""The speed of a run: the work and the time of its steps, as metrics.jsonl reports them."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from intel_ft.distributed.world import World
from intel_ft.host import devices
from intel_ft.host.cpu import rss_gib
from intel_ft.models.flops import StepCost
from intel_ft.training.comparison import measures


@dataclass
class StepTotals:
    """Sums over some optimizer steps.

    tokens, supervised_tokens: of the global batches; computed_tokens, flops: of this rank's rows;
    imbalance: of `step.rank_imbalance`; exchange_seconds: of summing gradients over ranks;
    router_aux_loss: of this rank's rows, part of the gradient and not of the loss; compared,
    measures: examples of a preference method, and their sums (comparison.WIDTH).
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    computed_tokens: float = 0.0
    flops: float = 0.0
    imbalance: float = 0.0
    exchange_seconds: float = 0.0
    router_aux_loss: float = 0.0
    compared: int = 0
    measures: Any = 0.0

    def add(self, other: "StepTotals") -> None:
        """Add another's sums to this one's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Meter:
    """The totals since the last logged line, and those of all lines before it.

    cost: operations that a row needs. gemm_rate: of all ranks together, FLOP/s, the peak that MFU
    is relative to; register_rate: the same of the instruction that utilization is relative to, None
    if this machine has none that is known. Both may be set once they have been measured.
    """

    cost: StepCost
    gemm_rate: float = 1.0
    register_rate: float | None = None
    interval: StepTotals = field(default_factory=StepTotals)
    total: StepTotals = field(default_factory=StepTotals)

    def log_interval(self, world: World) -> dict[str, float]:
        """The fields of a metrics.jsonl line, from here on of a new interval. All ranks call it."""
        done = self.interval
        means = measures(done.measures, done.compared) if done.compared else {}
        parts = [done.flops, done.computed_tokens, done.router_aux_loss]
        sums = world.all_reduce(torch.tensor(parts, dtype=torch.float64))
        done.flops, done.computed_tokens, done.router_aux_loss = sums.tolist()
        self.finish_interval()
        seconds, steps = max(done.seconds, 1e-9), max(done.steps, 1)
        utilization, shared = {}, {}
        if done.computed_tokens < done.tokens:
            shared["computed_tokens"] = int(done.computed_tokens)
        if self.register_rate is not None:
            utilization["utilization"] = done.flops / seconds / self.register_rate
        return {
            "tokens": done.tokens,
            **shared,
            "supervised_tokens": done.supervised_tokens,
            "tokens_per_s": done.tokens / seconds,
            "mfu": done.flops / seconds / self.gemm_rate,
            **utilization,
            "rank_imbalance": done.imbalance / steps,
            "rss_gib": rss_gib(),
            "step_s": seconds / steps,
            "exchange_s": done.exchange_seconds / steps,
            **({"router_aux_loss": done.router_aux_loss / steps} if done.router_aux_loss else {}),
            **means,
        }

    def finish_interval(self) -> None:
        """Add the interval to the total and begin a new one."""
        self.total.add(self.interval)
        self.interval = StepTotals()


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Times each optimizer step from its batch to its update, without saving and evaluating."""

    def __init__(self, meter: Meter, device: torch.device) -> None:
        self.meter = meter
        self.device = device
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        devices.synchronize(self.device)
        self.meter.interval.steps += 1
        self.meter.interval.seconds += time.perf_counter() - self.began
