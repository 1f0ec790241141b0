"""Times the optimizer steps of any Transformers Trainer and counts the tokens it trained on.

The rule is the same for every contender: a step lasts from the end of the previous step to its own
end, so it includes forming the batch, logging and the optimizer's update.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import TrainerCallback

from intel_ft.batching.row import Row
from intel_ft.bench.task import GPU_WARM_UP_STEPS, LONG_STEP, MIN_TIMED_STEPS, WARM_UP_STEPS
from intel_ft.distributed.world import World
from intel_ft.host import devices

ALONE = World()


@dataclass
class Tally:
    """Tokens trained on, without padding: each example's length, and the supervised tokens."""

    lengths: list[int] = field(default_factory=list)
    supervised: int = 0

    def add(self, lengths: list[int], supervised: int) -> None:
        """Count these examples and their supervised tokens."""
        self.lengths += lengths
        self.supervised += supervised

    def clear(self) -> None:
        """Start again from zero."""
        self.lengths.clear()
        self.supervised = 0

    def as_row(self) -> Row:
        """A packed row of the counted examples, for `StepCost.flops`; its tokens are all 0."""
        lengths = np.array(self.lengths, dtype=np.int64)
        tokens, targets = (np.zeros(n, dtype=np.int64) for n in (lengths.sum(), self.supervised))
        return Row(tokens, tokens, np.concatenate(([0], np.cumsum(lengths))), targets, targets)


class StepTimer(TrainerCallback):  # type: ignore[misc]
    """Ends training after the warm-up and `seconds` of timed steps; see `step_times`.

    `count`, if given, is called after each step with the step's index (from 0), to add to `tally`.
    All ranks of `world` stop after the same step: as soon as one of them has run long enough.
    """

    def __init__(
        self,
        tally: Tally,
        seconds: float,
        count: Callable[[int], None] | None = None,
        world: World = ALONE,
        extra: float = 0.0,
    ) -> None:
        self.tally = tally
        self.seconds = seconds
        self.count = count
        self.world = world
        self.extra = extra
        self.ends: list[float] = []
        self.warm_up, self.min_steps = WARM_UP_STEPS, MIN_TIMED_STEPS
        self._start = 0.0

    @property
    def step_times(self) -> list[float]:
        """Seconds of each timed step, with `extra` for work that was done before the first one."""
        return [float(seconds) + self.extra for seconds in np.diff(self.ends)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock: the duration of the first step decides how many steps are needed."""
        if args.device.type == "cuda":
            self.warm_up = GPU_WARM_UP_STEPS
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Record the time, drop the warm-up, and stop after enough timed steps."""
        devices.synchronize(args.device)
        now = time.perf_counter()
        if self.count is not None:
            self.count(state.global_step - 1)
        if state.global_step == 1 and now - self._start > LONG_STEP:
            self.warm_up, self.min_steps = 1, 2
        if state.global_step < self.warm_up:
            return control
        if state.global_step == self.warm_up:
            self.tally.clear()
        self.ends.append(now)
        enough = now - self.ends[0] >= self.seconds and len(self.ends) > self.min_steps
        control.should_training_stop = bool(self.world.all_reduce_max(int(enough)))
        return control
