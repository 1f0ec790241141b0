"""Predicts memory and time of a run on a cluster, before any weight is loaded.

`inputs` collects what the prediction is computed from: the model's counts, the rates of `hardware`,
the rows of `workload`, and the time of a few layers, run by `probe`. training.memory predicts the
memory, `roofline` the time.
"""

from dataclasses import replace
from typing import Any

from intel_ft.config import Config
from intel_ft.distributed.collective import Installed, choose_collective
from intel_ft.host import cpu
from intel_ft.host.launcher_env import INTEL_MPI
from intel_ft.models.flops import with_teacher
from intel_ft.planner import roofline
from intel_ft.planner.fit import by_row, changes
from intel_ft.planner.inputs import Counted, PlanInputs, Run, rates_of, run_of, threads_of
from intel_ft.training.memory import estimate_memory, largest_row
from intel_ft.training.preference_loss import WITH_REFERENCE


def plan(inputs: PlanInputs) -> dict[str, Any]:
    """{model, data, memory, checkpoint, change, cluster, step, run}.

    Sizes are GiB, times seconds, rates GFLOP/s or token/s; `change` lists what would make the run
    fit, if it does not.
    """
    run = run_of(inputs)
    return {
        **model_facts(inputs),
        **_sizes(inputs, run),
        "cluster": _cluster(inputs, run),
        **_times(inputs, run),
    }


def sizes(inputs: PlanInputs) -> dict[str, Any]:
    """{data, memory, checkpoint, change} of `plan`, which need no measured rate."""
    return _sizes(inputs, run_of(inputs))


def model_facts(found: Counted) -> dict[str, Any]:
    """{model} of `plan`."""
    sizes = found.model.sizes
    return {
        "model": {
            "name": found.config.model.name_or_path,
            "parameters": sizes.parameters,
            "active": sizes.active,
            "trainable": sizes.trained,
            "layers": sizes.why_not_fused or "fused",
            "decisions": [vars(decision) for decision in found.model.decisions],
        }
    }


def _sizes(inputs: PlanInputs, run: Run) -> dict[str, Any]:
    config, cluster, model = inputs.config, inputs.cluster, inputs.model
    setting, available = run.setting, run.available
    memory = estimate_memory(model.sizes, setting)
    weights = 4 * model.sizes.trained
    saved = weights + (4 * 2 * model.sizes.trained if "adam" in config.train.optimizer else 0)
    saved += weights if setting.keeps_best else 0
    steps = _steps(inputs, run)
    written = None if steps is None else max(1, steps // config.train.save_steps)
    kept = min(config.train.keep_checkpoints, written or config.train.keep_checkpoints)
    return {
        "data": {
            "source": inputs.examples.source,
            "steps": steps,
            "row_capacity": run.capacity,
        },
        "memory": {
            "layout": setting.layout,
            "row_tokens": setting.row_tokens,
            "parts": {name: part / cpu.GIB for name, part in vars(memory).items()},
            "total": memory.total / cpu.GIB,
            "needed": memory.needed / cpu.GIB,
            "available": available / cpu.GIB,
            "node": None if setting.gpu else _node(memory.needed, available, cluster.ranks),
            "fits": memory.needed <= available,
            "largest_row": largest_row(model.sizes, setting, available),
            "rows": by_row(model, setting),
        },
        "checkpoint": {
            "weights": weights / cpu.GIB,
            "each": saved / cpu.GIB,
            "kept": kept * saved / cpu.GIB,
        },
        "change": [] if memory.needed <= available else changes(inputs),
    }


def _node(needed: float, available: float, ranks: int) -> dict[str, float]:
    """What all ranks of a node need together, and what they have, in GiB."""
    return {
        "ranks": ranks,
        "needed": ranks * needed / cpu.GIB,
        "available": ranks * available / cpu.GIB,
    }


def _cluster(inputs: PlanInputs, run: Run) -> dict[str, Any]:
    cluster, machine = inputs.cluster, inputs.machine
    return {
        "nodes": cluster.nodes,
        "ranks": cluster.nodes * cluster.ranks,
        "threads": threads_of(inputs),
        "node": machine.name,
        "gpu": run.setting.gpu,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "gemm_gflops": machine.gemm_rate / 1e9,
        "int8_gops": machine.int8_rate / 1e9,
        "memory_gb_per_s": machine.bandwidth / 1e9,
        "slowdown": machine.slowdown,
        "source": machine.source,
        "measured_here": cluster.cpu is None and not run.setting.gpu,
    }


def _times(inputs: PlanInputs, run: Run) -> dict[str, Any]:
    config, cluster, model = inputs.config, inputs.cluster, inputs.model
    steps, setting = run.steps, run.setting
    rates = rates_of(inputs, threads_of(inputs), setting)
    collective = _collective(config, gpu=setting.gpu)
    exchange = roofline.exchange_seconds(
        model.sizes.trained, cluster.nodes, cluster.ranks, collective, cluster.network / 8
    )
    if setting.sharded:
        most = sum(max(len(rows) for rows in ranks) for ranks in steps) / len(steps)
        exchange = roofline.gather_seconds(
            model, setting, most, cluster.nodes, collective, cluster.network / 8
        )
    slowest, idle = [], 0.0
    for ranks in steps:
        times = [
            roofline.rank_seconds(model, rates, rows, setting).slower(inputs.machine.slowdown)
            for rows in ranks
        ]
        slowest.append(max(times, key=lambda seconds: seconds.total))
        idle += 1 - sum(t.total for t in times) / len(times) / slowest[-1].total
    parts = {
        name: sum(getattr(seconds, name) for seconds in slowest) / len(slowest)
        for name in vars(slowest[0])
    }
    parts["communication"] = exchange
    seconds = sum(parts.values())
    rows = [row for ranks in steps for share_ in ranks for row in share_]
    tokens = sum(row.read for row in rows) / len(steps)
    computed = sum(row.tokens for row in rows) / len(steps)
    squares = sum(row.squares for row in rows) / len(steps)
    supervised = sum(row.supervised for row in rows) / len(steps)
    cost = model.cost if model.teacher is None else with_teacher(model.cost, model.teacher.cost)
    flops = cost.linear * computed + cost.attention * squares + cost.logits * supervised
    ranks_count = cluster.nodes * cluster.ranks
    return {
        "step": {
            "tokens": tokens,
            "computed_tokens": computed,
            "shared_prefix_share": max(0.0, 1 - computed / tokens),
            "supervised_tokens": supervised,
            "flops": flops,
            "seconds": seconds,
            "parts": parts,
            "tokens_per_s": tokens / seconds,
            "mfu": flops / seconds / (rates.gemm * ranks_count),
            "communication_share": exchange / seconds,
            "waiting_share": idle / len(steps),
            "collective": collective,
        },
        "run": _whole_run(inputs, run, seconds, tokens),
    }


def _whole_run(inputs: PlanInputs, run: Run, step: float, tokens: float) -> dict[str, Any]:
    """{run} of `plan`, from the seconds and tokens of a step; None where data was not read.

    The seconds of the whole run leave out an evaluation whose data was not read.
    """
    examples, data, watts = inputs.examples, inputs.config.data, inputs.cluster.watts
    steps = _steps(inputs, run)
    # Forward is half of a frozen GEMM's work, and a third of the rest.
    evaluation: float | None = None
    if examples.validation_tokens or not (data.eval or data.eval_fraction):
        evaluation = run.work.evaluations * examples.validation_tokens / tokens * step / 2
    reference: float | None = _reference_tokens(inputs, run) / tokens * step / 2
    if reference and not examples.counted:
        reference = None
    total = None if steps is None else steps * step + (evaluation or 0) + (reference or 0)
    kwh = None
    if watts is not None and total is not None:
        kwh = watts * inputs.cluster.nodes * total / 3.6e6
    return {
        "steps": steps,
        "seconds": total,
        "evaluation_seconds": None if steps is None else evaluation,
        "reference_seconds": None if steps is None else reference,
        "kwh": kwh,
    }


def _steps(inputs: PlanInputs, run: Run) -> int | None:
    """Optimizer steps of the run; None if they follow from a number of examples not known."""
    known = inputs.examples.counted or inputs.config.train.max_steps
    return run.work.steps if known else None


def _reference_tokens(inputs: PlanInputs, run: Run) -> float:
    """Tokens of the answers whose log-probabilities a preference method computes beforehand.

    KTO reads answers to other prompts as well, before training and in each step.
    """
    method, work = inputs.config.method, run.work
    if method.name != "preference" or method.loss not in WITH_REFERENCE:
        return 0.0
    epochs = work.steps / work.plan.steps_per_epoch
    once = float(inputs.examples.lengths.sum())
    tokens = min(1.0, epochs) * once + inputs.examples.validation_tokens
    return tokens if method.loss != "kto" else 2 * tokens + epochs * once


def _collective(config: Config, *, gpu: bool) -> str:
    """As a run decides that `launch` starts, whose mpirun is the one that oneCCL needs."""
    if config.backend.collective != "auto":
        return config.backend.collective  # the cluster may have what this machine lacks
    return choose_collective(
        config.backend,
        compute="cuda" if gpu else "cpu",
        launcher=INTEL_MPI,
        installed=replace(Installed.detect(), nccl=True),
    ).value
