"""What a run does beside training: metrics.jsonl, the progress line, stopping on a signal."""

import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from intel_ft.distributed.rank_startup import stop_signal
from intel_ft.distributed.world import World
from intel_ft.errors import Stopped
from intel_ft.files import write_text
from intel_ft.plurals import rough_time
from intel_ft.signals import StopSignal

logger = logging.getLogger(__name__)

_NAMES = {"learning_rate": "lr"}
_SECONDS_BETWEEN_LINES = 10.0


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends a line to metrics.jsonl for each logged step and each evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the lines that an interrupted run logged after the checkpoint it resumes from."""
        if self.path.exists():
            done = state.global_step if is_evaluated(state) else state.global_step - 0.5
            kept = [
                line
                for line in self.path.read_text(encoding="utf-8").splitlines()
                if _step(line) <= (done if '"eval_loss"' in line else state.global_step)
            ]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Write the line and flush it."""
        if not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        line = {"step": state.global_step} | {_NAMES.get(k, k): v for k, v in logs.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def is_evaluated(state: Any) -> bool:
    """Whether the validation loss after the state's last step is in its history."""
    return any(
        line["step"] == state.global_step and "eval_loss" in line for line in state.log_history
    )


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a kill cut this line off


class ProgressLine(TrainerCallback):  # type: ignore[misc]
    """Loss, token/s, MFU and time left: a bar on a terminal, elsewhere a log line every 10 s."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.task: Any = None
        self.last_line = 0.0
        self.began = (0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar if stderr is a terminal."""
        self.began = (state.global_step, time.monotonic())
        if sys.stderr.isatty():
            self.bar = Progress(
                SpinnerColumn(),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Update the bar, or log a line if the last one is some seconds old."""
        if not logs:
            return
        if "eval_loss" in logs:
            name = "perplexity" if "eval_perplexity" in logs else "accuracy"
            logger.info(
                "step %d: validation loss %.4f, %s %.2f",
                *(state.global_step, logs["eval_loss"], name, logs[f"eval_{name}"]),
            )
        if "loss" not in logs:
            return
        text = (
            f"loss {logs['loss']:.4f}  {logs['tokens_per_s']:,.0f} token/s  MFU {logs['mfu']:.0%}"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, description=text)
        elif time.monotonic() - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            logger.info(
                "step %d/%d  %s  %s left",
                state.global_step,
                state.max_steps,
                text,
                self._left(state),
            )

    def _left(self, state: Any) -> str:
        step, start = self.began
        done = max(state.global_step - step, 1)
        seconds = (time.monotonic() - start) / done * (state.max_steps - state.global_step)
        return rough_time(seconds)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class SignalStop(StopSignal, TrainerCallback):  # type: ignore[misc]
    """Saves and stops after the current step on SIGINT or SIGTERM, to any rank or to `launch`.

    Used as a context manager around training; a second SIGINT interrupts at once.
    """

    def __init__(self, world: World) -> None:
        # mpirun signals every rank.
        super().__init__(logging.INFO if world.rank else logging.WARNING)
        self.world = world

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the Trainer save and stop, on all ranks alike."""
        if self.world.rank == 0:
            self.received = self.received or stop_signal()
        self.received = self.world.all_reduce_max(self.received or 0) or None
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def raise_if_received(self, step: int) -> None:
        """Raise Stopped with the exit code of the signal (128 + its number)."""
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise Stopped(
                self.received,
                f"{name}: saved checkpoint-{step} and stopped: continue with --resume",
            )
