"""What common beginnings that are computed once save: tokens, and time of the same steps.

Usage: python tools/measure_shared_prefixes.py WORKLOAD [--layers N] [--divide N] [--steps N]
           [--threads N] [--only NAME]

WORKLOAD is one of `intel-ft bench train`, with N layers if that is given. --divide N makes it
narrower: hidden size, intermediate size, heads and vocabulary are divided by N, so that the head
and each layer keep their parts of the step's operations. The model and the tokens are random; each
set of examples has the beginnings of a kind of data. Every step runs with and without sharing, in
turns. Prints one JSON line for each set: the shares that are not computed of the tokens
(tokens_saved) and of the floating-point operations (operations_saved), the share of the time
(faster), its ratio to both (of_tokens, of_operations), the seconds of each step, and token/s of the
examples' tokens. faster and the ratios are medians over steps, each of which is compared with what
it saves itself.

There are two ideals because sharing cannot save all that tokens suggest: the head, and the last
layer after its attention, run for supervised tokens only, which are not shared. With the alpaca
template, Llama 2 7B's 32 layers save 0.97 of the share of the tokens in operations, but a slice of
4 layers saves only 0.82. So measure whole depth: if a model is too large to be timed, make it
narrower, not less deep. The ratio to operations says how well sharing works, the ratio to tokens
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
from intel_ft.bench.workloads import Workload, random_model, workload
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


def shape_of(options: argparse.Namespace) -> Workload:
    """The model's shape."""
    whole = workload(options.workload)
    return replace(
        whole,
        layers=options.layers or whole.layers,
        hidden=whole.hidden // options.divide,
        intermediate=whole.intermediate // options.divide,
        heads=whole.heads // options.divide,
        kv_heads=whole.kv_heads // options.divide,
        vocabulary=whole.vocabulary // options.divide,
    )


def trainings(options: argparse.Namespace) -> tuple[Training, Training]:
    """The training of the examples of all sets, with sharing and without, on one model."""
    shape = shape_of(options)
    examples = concatenate(
        [example_set(*SETS[name], options.steps, shape.vocabulary) for name in SETS]
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


def step_of(name: str, index: int, training: Training, steps: int) -> Step:
    """A step with the examples that were made for it, in place of an epoch's order."""
    plan = training.data.plan
    examples = np.arange(BATCH) + (list(SETS).index(name) * steps + index) * BATCH
    return Step(plan, index, examples, int(plan.supervised[examples].sum()))


def measure(name: str, shared: Training, plain: Training, steps: int) -> dict[str, object]:
    """The figures of one set of examples."""
    plan = shared.data.plan
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    parts = {"off": plain, "on": shared}
    gains, saved_tokens, saved_operations = [], [], []
    tokens = 0
    for index in range(steps):
        step = {key: step_of(name, index, part, steps) for key, part in parts.items()}
        for key in ("off", "on") if index % 2 == 0 else ("on", "off"):
            seconds[key].append(seconds_of(step[key], parts[key]))
        gains.append(1 - seconds["on"][-1] / seconds["off"][-1])
        count = int(plan.lengths[step["on"].examples].sum())
        saved = sum(plan.saved(row) for row in plan.rows(step["on"].examples))
        needed = {key: operations(rows_of(step[key], part), part) for key, part in parts.items()}
        saved_tokens.append(saved / count)
        saved_operations.append(1 - needed["on"] / needed["off"])
        tokens += count

    def of(saved: list[float]) -> float:
        ratios = [gain / ideal for gain, ideal in zip(gains, saved, strict=True)]
        return round(statistics.median(ratios), 3)

    config = shared.model.network.config
    return {
        "set": name,
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "threads": torch.get_num_threads(),
        "tokens_saved": round(statistics.median(saved_tokens), 4),
        "operations_saved": round(statistics.median(saved_operations), 4),
        "faster": round(statistics.median(gains), 4),
        "of_tokens": of(saved_tokens),
        "of_operations": of(saved_operations),
        "seconds": {key: [round(one, 2) for one in part] for key, part in seconds.items()},
        "tokens_per_s": {key: round(tokens / sum(part)) for key, part in seconds.items()},
    }


def main() -> None:
    """Measure each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=SETS, action="append")
    options = parser.parse_args()
    shared, plain = trainings(options)
    names = options.only or list(SETS)
    for training in (plain, shared):  # warms up
        seconds_of(step_of(names[0], 0, training, options.steps), training)
    for name in names:
        print(json.dumps(measure(name, shared, plain, options.steps)), flush=True)


if __name__ == "__main__":
    main()
