"""What a few layers of the model really take on this machine, in place of what the roofline and the
memory of other machines say. `probed`, called from insight.plan_inputs, starts this module as a
process of its own: `python -m intel_ft.planner.probe CONFIG EXAMPLES LAYERS`.
"""

import json
import logging
import os
import sys
import tempfile
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from intel_ft import subprocess_json
from intel_ft.backends import choice
from intel_ft.batching.plan import Plan
from intel_ft.bench.own_trainer import trainer_of
from intel_ft.bench.workloads import random_examples, with_noise
from intel_ft.config import Config, load
from intel_ft.distributed.world import World
from intel_ft.errors import IntelFTError
from intel_ft.files import write_text
from intel_ft.host import cpu
from intel_ft.models import packed_attention
from intel_ft.planner.roofline import Rates, rank_seconds
from intel_ft.planner.workload import Rows
from intel_ft.training.memory import RUNTIME, MemorySetting, memory
from intel_ft.training.model_sizes import (
    CountedModel,
    ModelSizes,
    count_description,
    description_of,
)
from intel_ft.training.setup import row_capacity

logger = logging.getLogger(__name__)

Integers = npt.NDArray[np.int64]

_LAYERS, _WEIGHTS = 2, 2**30  # as many layers as have these bytes, but two: more than caches hold
_VOCABULARY = 1024  # a head that costs little: the model's own is counted well
_SECONDS = 1.5  # of a step, as predicted
_WARM_UP, _TIMED = 1, 5  # steps
_SHORTEST = 128  # tokens of an example that is cut
_OF_A_RUN = 0.1 * cpu.GIB  # what a run has beside: data, tokenizer, kernels of more row lengths


@dataclass(frozen=True)
class Probe:
    """slowdown: the layers' time over the roofline's; runtime: bytes of memory that are not the
    model's.
    """

    slowdown: float = 1.0
    runtime: float = RUNTIME


def probed(
    config: Config, model: CountedModel, rows: Rows, setting: MemorySetting, rates: Rates
) -> Probe:
    """Train the first layers of the config's `model` on examples as long as those in `rows`, for
    some seconds. rates: of the threads that `config` has. Where it cannot be done, the roofline
    stands, and a warning says why.
    """
    short = count_description(config, shortened(model.description, _layers(model.sizes)))
    alone = replace(setting, teacher=None, keeps_best=False, ranks=1, named=None)
    predicted = rank_seconds(short, rates, rows, alone)
    share = _SECONDS / (predicted.total - predicted.slower(0.0).total)
    segments = np.concatenate([lengths for lengths, _ in rows])
    batch = max(1, round(share * len(segments)))
    longest = max(_SHORTEST, int(share * segments.sum()))  # one may be more than there is time for
    lengths = np.resize(np.minimum(segments, longest), (_WARM_UP + _TIMED) * batch)
    supervised = np.ceil(lengths * sum(count for _, count in rows) / segments.sum()).astype(int)
    supervised = np.minimum(supervised, lengths - 1)
    tried = _tried(config, setting, batch)
    try:
        found = _run(tried, np.stack([lengths, supervised], axis=1).tolist(), short.sizes.layers)
    except IntelFTError as error:
        logger.warning("plan: no layer was timed here: %s", error)
        return Probe()
    steps = _steps(tried, lengths, supervised, short.cost.quadratic_cost)
    largest, count = max((int(row.sum()), count) for step in steps for row, count in step)
    alone = replace(alone, row_tokens=largest, supervised=count)
    times = [rank_seconds(short, rates, step, alone) for step in steps[_WARM_UP:]]
    beside = sum(time.slower(0.0).total for time in times) / _TIMED
    layers = sum(time.total for time in times) / _TIMED - beside
    counted_bytes = memory(short.sizes, alone).needed - alone.runtime  # no file is mapped
    return Probe(
        max(0.1, (found["step_s"] - beside) / layers),
        max(RUNTIME, found["rss_gib"] * cpu.GIB - counted_bytes + _OF_A_RUN),
    )


def _steps(
    config: Config, lengths: Integers, supervised: Integers, quadratic_cost: float
) -> list[Rows]:
    """The rows of each of the probe's steps, as its plan packs them."""
    batch, capacity = config.train.global_batch_size, int(row_capacity(config).value)
    plan = Plan(lengths, supervised, batch, capacity, config.train.seed, quadratic_cost)
    return [
        [(lengths[row], int(supervised[row].sum())) for row in plan.rows(plan.step(n).examples)]
        for n in range(_WARM_UP + _TIMED)
    ]


def _layers(sizes: ModelSizes) -> int:
    """How many are trained for the probe."""
    weights = 2 * (sizes.parameters - sizes.kept_as_loaded) // sizes.layers
    return min(sizes.layers, max(_LAYERS, _WEIGHTS // max(1, weights)))


def shortened(description: Any, layers: int) -> Any:
    """A model's configuration with its first layers only, and a small vocabulary."""
    short = deepcopy(description)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    text.vocab_size = min(_VOCABULARY, text.vocab_size)
    text.pad_token_id = None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def _tried(config: Config, setting: MemorySetting, batch: int) -> Config:
    """`config` for the probe: one step after another of `batch` examples, nothing beside it."""
    changes: dict[str, dict[str, Any]] = {
        "train": {
            "max_steps": 10**6,
            "save_steps": 10**6,
            "eval_steps": None,
            "early_stopping": None,
            "global_batch_size": batch,
            "report_to": [],
            "callbacks": [],
        },
        "backend": {"name": "cpu"},  # whatever else torch sees here
    }
    if setting.layout in ("prepacked", "as loaded"):
        changes["backend"]["prepack"] = setting.layout == "prepacked"
    parts = {
        name: getattr(config, name).model_copy(update=update) for name, update in changes.items()
    }
    return config.model_copy(update=parts)


def _run(config: Config, examples: list[list[int]], layers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.yaml"
        output = config.output.model_copy(update={"directory": Path(folder) / "run"})
        write_text(path, config.model_copy(update={"output": output}).to_yaml())
        found: dict[str, float] = subprocess_json.measured(
            "plan",
            "intel_ft.planner.probe",
            [str(path), json.dumps(examples), str(layers)],
            os.environ,
        )
        return found


def measure(config: Config, examples: list[list[int]], layers: int) -> dict[str, float]:
    """Train the first layers on examples of so many tokens, of which the last so many are
    supervised: {step_s, the median in seconds; rss_gib, the peak}.
    """
    backend = choice.select(config.backend, config.model, "cpu")
    description = shortened(description_of(config.model), layers)
    base = with_noise(
        lambda: AutoModelForCausalLM.from_config(
            description,
            dtype=backend.dtype,
            attn_implementation=packed_attention.NAME,
            trust_remote_code=config.model.trust_remote_code,
        ),
        0,
    )
    lengths, supervised = np.array(examples).T
    made = random_examples(
        np.random.default_rng(0),
        lengths - supervised,
        supervised,
        description.get_text_config().vocab_size,
    )
    trainer, watch = trainer_of(config, base, made, 0.0, World(), torch.device("cpu"))
    watch.warm_up, watch.least = _WARM_UP, _TIMED
    trainer.train()
    return {"step_s": float(np.median(watch.step_times)), "rss_gib": cpu.peak_rss_gib()}


def main() -> None:
    """Measure what argv says; stdout is the answer's alone."""
    import datasets  # noqa: F401  what a run has in memory, too

    path, examples, layers = sys.argv[1:]
    with subprocess_json.answer() as stream:
        json.dump(measure(load(Path(path), None), json.loads(examples), int(layers)), stream)


if __name__ == "__main__":
    main()
