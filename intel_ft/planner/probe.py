"""Measures time and memory of a few of the model's layers on this machine, to correct a plan.

`probed` starts this module as a separate process:
`python -m intel_ft.planner.probe CONFIG EXAMPLES LAYERS`.
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
from transformers import AutoModelForCausalLM

from intel_ft import subprocess_json
from intel_ft.backends import choice
from intel_ft.bench.own_trainer import timed_trainer
from intel_ft.bench.workloads import random_examples, with_noise
from intel_ft.config import Config, load
from intel_ft.config_method import OF_LOSSES, WITH_STUDENT, MethodConfig
from intel_ft.distributed.world import World
from intel_ft.errors import IntelFTError
from intel_ft.files import write_text
from intel_ft.host import cpu
from intel_ft.layers import packed_attention
from intel_ft.models.flops import active_experts
from intel_ft.models.load import description_of
from intel_ft.planner.roofline import Rates, rank_seconds
from intel_ft.planner.workload import Rows, rows_of
from intel_ft.training.decide import make_plan
from intel_ft.training.memory import RUNTIME, MemorySetting, estimate_memory
from intel_ft.training.model_sizes import (
    CountedModel,
    ModelSizes,
    count_description,
)

logger = logging.getLogger(__name__)

Integers = npt.NDArray[np.int64]

_LAYERS, _WEIGHTS = 2, 2**30  # at least two layers, and enough bytes to exceed the caches
_VOCABULARY = 1024  # of a small head, because the formula is good for the model's own
_SECONDS = 1.5  # per step, as predicted
_WARM_UP, _TIMED = 1, 5  # steps
_SHORTEST = 128  # tokens that a shortened example keeps
_ONLY_IN_A_RUN = 0.05 * cpu.GIB  # tokenizer, checkpoints, records


@dataclass(frozen=True)
class Probe:
    """slowdown: the layers' time over the roofline's; runtime: bytes that are not the model's."""

    slowdown: float = 1.0
    runtime: float = RUNTIME


def probed(
    config: Config, model: CountedModel, rows: Rows, setting: MemorySetting, rates: Rates
) -> Probe:
    """Train the first layers of the config's `model` for some seconds, on rows like `rows`.

    rates: of the threads that `config` has. If the layers cannot be trained here, a warning says
    why and the plan keeps to the roofline.
    """
    short = count_description(config, shortened(model.description, _layers(model.sizes)))
    alone = replace(setting, teacher=None, keeps_best=False, ranks=1, token_ids=None)
    predicted = rank_seconds(short, rates, rows, alone)
    share = _SECONDS / (predicted.total - predicted.slower(0.0).total)
    segments = np.concatenate([row.segments for row in rows])
    batch = max(1, round(share * len(segments)))
    longest = max(_SHORTEST, int(share * segments.sum()))
    lengths = np.resize(np.minimum(segments, longest), (_WARM_UP + _TIMED) * batch)
    supervised = np.ceil(lengths * sum(row.supervised for row in rows) / segments.sum()).astype(int)
    supervised = np.minimum(supervised, lengths - 1)
    short_config = _short_config(config, setting, batch)
    try:
        examples = np.stack([lengths, supervised], axis=1).tolist()
        measured = _run(short_config, examples, short.sizes.layers)
    except IntelFTError as error:
        logger.warning("plan: the model's layers could not be timed here: %s", error)
        return Probe()
    plan = make_plan(short_config, lengths, supervised, short.cost, packed=True)
    steps = [rows_of(plan, step.examples) for step in plan.steps(0, _WARM_UP + _TIMED)]
    largest, count = max((row.tokens, row.supervised) for step in steps for row in step)
    alone = replace(alone, row_tokens=largest, supervised=count)
    times = [rank_seconds(short, rates, step, alone) for step in steps[_WARM_UP:]]
    rest = sum(time.slower(0.0).total for time in times) / _TIMED
    layers = sum(time.total for time in times) / _TIMED - rest
    model_bytes = estimate_memory(short.sizes, alone).needed - alone.runtime  # no file is mapped
    return Probe(
        max(0.1, (measured["step_s"] - rest) / layers),
        max(RUNTIME, measured["rss_gib"] * cpu.GIB - model_bytes + _ONLY_IN_A_RUN),
    )


def _layers(sizes: ModelSizes) -> int:
    """How many layers the probe trains."""
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


def _short_config(config: Config, setting: MemorySetting, batch: int) -> Config:
    """`config` for the probe: steps of `batch` examples on the CPU.

    It has no teacher, starts from the base alone, and keeps no records.
    """
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
        "backend": {"name": "cpu"},  # even if torch sees a GPU here
    }
    if config.method.name in WITH_STUDENT:
        name = "full" if config.method.trains_all else "lora"
        others = {"teacher", "student", "divergence", "temperature", "teacher_weight"}
        others |= {"loss", "beta", *OF_LOSSES}
        changes["method"] = {"name": name, **MethodConfig().model_dump(include=others)}
        changes["train"]["best_metric"] = "loss"
    if setting.layout in ("prepacked", "as loaded"):
        changes["backend"]["prepack"] = setting.layout == "prepacked"
    parts = {
        name: getattr(config, name).model_copy(update=update) for name, update in changes.items()
    }
    return config.model_copy(update=parts | {"model": config.model.base})


def _run(config: Config, examples: list[list[int]], layers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.yaml"
        output = config.output.model_copy(update={"directory": Path(folder) / "run"})
        write_text(path, config.model_copy(update={"output": output}).to_yaml())
        measured: dict[str, float] = subprocess_json.run_module(
            "plan",
            "intel_ft.planner.probe",
            [str(path), json.dumps(examples), str(layers)],
            os.environ,
        )
        return measured


def measure(config: Config, examples: list[list[int]], layers: int) -> dict[str, float]:
    """Train the first layers: {step_s, the median in seconds; rss_gib, the peak}.

    examples: of each its tokens and how many of them, the last ones, are supervised.
    """
    mixture = bool(active_experts(description_of(config.model)))
    backend = choice.select(config.backend, config.model, "cpu", mixture=mixture)
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
    random = random_examples(
        np.random.default_rng(0),
        lengths - supervised,
        supervised,
        description.get_text_config().vocab_size,
    )
    trainer, timer = timed_trainer(config, base, random, 0.0, World(), backend)
    timer.warm_up, timer.least = _WARM_UP, _TIMED
    trainer.train()
    return {"step_s": float(np.median(timer.step_times)), "rss_gib": cpu.peak_rss_gib()}


def main() -> None:
    """Measure what argv describes; stdout carries only the result."""
    import datasets  # noqa: F401  because a run has it in memory too

    path, examples, layers = sys.argv[1:]
    with subprocess_json.result_stream() as stream:
        json.dump(measure(load(Path(path), None), json.loads(examples), int(layers)), stream)


if __name__ == "__main__":
    main()
