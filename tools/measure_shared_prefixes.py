"""What common beginnings that are computed once save: tokens, and time of the same steps.

Usage: python tools/measure_shared_prefixes.py WORKLOAD [--layers N] [--steps N] [--threads N]
           [--only NAME]

WORKLOAD is one of `intel-ft bench train`, with N layers if that is given. The model and the tokens
are random; each set of examples has the beginnings of a kind of data. Every step runs with and
without sharing, in turns, and the median over steps is of the ratio of each pair. Prints one JSON
line for each set: the shares that are not computed of the tokens (tokens_saved) and of the
floating-point operations (operations_saved), the share of the time (faster), its ratio to both
(of_tokens, of_operations), and token/s of the examples' tokens.

There are two ideals because sharing cannot save all that tokens suggest: the head, and the last
layer after its attention, run for supervised tokens only, which are not shared. This part is small
in a model of many layers. The ratio to operations says how well sharing works, the ratio to tokens
what a user of this model gains.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from intel_ft.backends.cpu import select
from intel_ft.batching.plan import Step
from intel_ft.batching.row import Row
from intel_ft.bench.workloads import random_model, workload
from intel_ft.config import build
from intel_ft.distributed.world import World
from intel_ft.layers.packed_attention import NAME
from intel_ft.models.targets import is_linear
from intel_ft.templates.examples import Examples, concatenate
from intel_ft.training.assemble import assemble
from intel_ft.training.step import train_step
from intel_ft.training.workload import Training

BATCH = 16


def example_set(common: int, prompts: int, prompt: int, steps: int, vocabulary: int) -> Examples:
    """Steps of 16 examples: `common` tokens, one of `prompts` prompts, and a supervised answer.

    prompt: the mean tokens of a prompt; answers have exp(N(3.8, 0.9)) within 5 to 400.
    """
    random = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return random.integers(3, vocabulary, count, dtype=np.int32)

    start, parts = tokens(common), []
    for _ in range(steps):
        asked = [tokens(max(8, int(random.normal(prompt, prompt / 3)))) for _ in range(prompts)]
        for index in range(BATCH):
            answer = tokens(int(np.clip(np.exp(random.normal(3.8, 0.9)), 5, 400)))
            ids = np.concatenate((start, asked[index % prompts], answer))
            supervised = np.arange(len(ids)) >= len(ids) - len(answer)
            parts.append(Examples(ids, supervised, np.array([0, len(ids)])))
    return concatenate(parts)


SETS = {  # tokens that all examples share, different prompts of a step, tokens of a prompt
    "alpaca template": (33, 16, 30),
    "system prompt of 150 tokens": (150, 16, 60),
    "8-shot prompt": (1000, 16, 60),
    "4 answers a prompt": (33, 4, 250),
}


def seconds_of(step: Step, training: Training) -> float:
    """The time of one step's forward and backward."""
    began = time.perf_counter()
    train_step(step, training)
    spent = time.perf_counter() - began
    for weight in training.model.trained_parameters():
        weight.grad = None
    return spent


def trainings(options: argparse.Namespace) -> tuple[Training, Training]:
    """The training of the examples of all sets, with sharing and without, on one model."""
    shape = workload(options.workload)
    if options.layers:
        shape = replace(shape, layers=options.layers)
    examples = concatenate(
        [example_set(*SETS[name], options.steps + 1, shape.vocabulary) for name in SETS]
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": {"name_or_path": shape.name, "dtype": "bfloat16"},
            "data": {"train": "synthetic", "max_length": 2048},
            "method": {"r": 16, "alpha": 32},
            "train": {"global_batch_size": BATCH, "report_to": []},
            "backend": {"name": "cpu", "threads": options.threads or "auto"},
            "output": {"directory": Path(folder)},
        }
        config = build(settings, "tools/measure_shared_prefixes.py")
        backend = select(config.backend, config.model)
        shared, decisions = assemble(
            config, random_model(shape, 0, NAME), examples, backend, World()
        )
    for decision in decisions:
        print(decision, flush=True)
    data = shared.data
    return shared, replace(shared, data=replace(data, plan=replace(data.plan, shared=None)))


def rows_of(step: Step, training: Training) -> list[Row]:
    """All rows of a step."""
    data = training.data
    return [data.row(data.examples, indices) for indices in step.rows(0, 1)]


def operations(rows: list[Row], training: Training) -> float:
    """Floating-point operations of rows: the cost of a step without what its last layer skips."""
    last, skipped = training.model.network.get_decoder().layers[-1], 0.0
    for part, module in last.named_modules():
        if is_linear(module) and not part.split(".")[1].startswith(("q_", "k_", "v_")):
            skipped += (6.0 if module.weight.requires_grad else 4.0) * module.weight.numel()
    cost = training.meter.cost
    return sum(cost.flops(row) - skipped * (len(row.tokens) - len(row.targets)) for row in rows)


def measure(name: str, shared: Training, plain: Training, steps: int) -> dict[str, object]:
    """The figures of one set of examples."""
    plan, first = shared.data.plan, list(SETS).index(name) * (steps + 1) * BATCH
    times: list[tuple[float, float]] = []
    saved = tokens = 0
    operations_on = operations_off = 0.0
    for index in range(steps + 1):
        # The examples that were made for this step, in place of an epoch's order.
        indices = np.arange(BATCH) + first + index * BATCH
        supervised = int(plan.supervised[indices].sum())
        on, off = (Step(part.data.plan, index, indices, supervised) for part in (shared, plain))
        if index % 2:
            with_sharing, without = seconds_of(on, shared), seconds_of(off, plain)
        else:
            without, with_sharing = seconds_of(off, plain), seconds_of(on, shared)
        if index == 0:
            continue  # warms up
        times.append((with_sharing, without))
        tokens += int(plan.lengths[indices].sum())
        saved += sum(plan.saved(row) for row in plan.rows(indices))
        operations_on += operations(rows_of(on, shared), shared)
        operations_off += operations(rows_of(off, plain), plain)
    faster = statistics.median(1 - on / off for on, off in times)
    on_seconds, off_seconds = (sum(one[which] for one in times) for which in (0, 1))
    tokens_saved, operations_saved = saved / tokens, 1 - operations_on / operations_off
    return {
        "set": name,
        "layers": shared.model.network.config.num_hidden_layers,
        "threads": torch.get_num_threads(),
        "tokens_saved": round(tokens_saved, 4),
        "operations_saved": round(operations_saved, 4),
        "faster": round(faster, 4),
        "of_tokens": round(faster / tokens_saved, 3),
        "of_operations": round(faster / operations_saved, 3),
        "tokens_per_s": {"off": round(tokens / off_seconds), "on": round(tokens / on_seconds)},
    }


def main() -> None:
    """Measure each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=SETS, action="append")
    options = parser.parse_args()
    shared, plain = trainings(options)
    for name in options.only or SETS:
        print(json.dumps(measure(name, shared, plain, options.steps)), flush=True)


if __name__ == "__main__":
    main()
