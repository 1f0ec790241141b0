"""Times the optimizer steps of any Trainer and counts what went through; called from insight.side.

The same rule for every side: a step lasts from the end of the one before to its own end, so that
forming the batch, logging and the update are in it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import TrainerCallback

from intel_ft.batching.row import Row
from intel_ft.bench.task import GPU_WARM_UP_STEPS, LEAST_STEPS, LONG_STEP, WARM_UP_STEPS
from intel_ft.distributed.world import World
from intel_ft.host import devices

ALONE = World()


@dataclass
class Tally:
    """Real tokens that went through: the length of every example, and the supervised ones."""

    lengths: list[int] = field(default_factory=list)
    supervised: int = 0

    def add(self, lengths: list[int], supervised: int) -> None:
        """Count some examples."""
        self.lengths += lengths
        self.supervised += supervised

    def clear(self) -> None:
        """Forget what was counted."""
        self.lengths.clear()
        self.supervised = 0

    def as_row(self) -> Row:
        """A row of these segments, for `StepCost.flops`; its tokens are all 0."""
        lengths = np.array(self.lengths, dtype=np.int64)
        tokens, targets = (np.zeros(n, dtype=np.int64) for n in (lengths.sum(), self.supervised))
        return Row(tokens, tokens, np.concatenate(([0], np.cumsum(lengths))), targets, targets)


class StepTimer(TrainerCallback):  # type: ignore[misc]
    """Ends the training after warm-up and `seconds` of timed steps; `step_times` has those.

    `count`, if given, is called after each step with its number from 0, to add to `tally`. All
    ranks of `world` stop after the same step, that at which the first of them has had enough.
    """

    def __init__(
        self,
        tally: Tally,
        seconds: float,
        count: Callable[[int], None] | None = None,
        world: World = ALONE,
    ) -> None:
        self.tally = tally
        self.seconds = seconds
        self.count = count
        self.world = world
        self.ends: list[float] = []
        self.warm_up, self.least = WARM_UP_STEPS, LEAST_STEPS
        self._began = 0.0

    @property
    def step_times(self) -> list[float]:
        """Seconds of each timed step."""
        return [float(seconds) for seconds in np.diff(self.ends)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time: how long the first step takes says how many to wait for."""
        if args.device.type == "cuda":
            self.warm_up = GPU_WARM_UP_STEPS
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Note the time; forget the warm-up; stop when enough was seen."""
        devices.synchronize(args.device)
        now = time.perf_counter()
        if self.count is not None:
            self.count(state.global_step - 1)
        if state.global_step == 1 and now - self._began > LONG_STEP:
            self.warm_up, self.least = 1, 2
        if state.global_step < self.warm_up:
            return control
        if state.global_step == self.warm_up:
            self.tally.clear()
        self.ends.append(now)
        enough = now - self.ends[0] >= self.seconds and len(self.ends) > self.least
        control.should_training_stop = bool(self.world.all_reduce_max(int(enough)))
        return control
