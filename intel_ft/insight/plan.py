"""`plan`: what a config will need on a cluster, before any weight is loaded: read this first;
called from cli.plan and insight.bench_plan.

plan_model counts, plan_work says what goes through, plan_memory and plan_time predict, and
plan_machine has the rates.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from intel_ft.backends import choice, cpu, cuda
from intel_ft.config import Config
from intel_ft.errors import UserError
from intel_ft.insight import plan_machine, plan_memory, plan_time
from intel_ft.insight.plan_fit import by_row, changes, setting_of
from intel_ft.insight.plan_machine import Machine
from intel_ft.insight.plan_memory import Setting
from intel_ft.insight.plan_model import ModelPlan, model_plan
from intel_ft.insight.plan_probe import probed
from intel_ft.insight.plan_work import Assumed, Rows, Work, sampled_steps, work_of
from intel_ft.models.cost import with_teacher
from intel_ft.models.prepacked import can_prepack
from intel_ft.training.setup import row_capacity

_CPU_BACKENDS = ("cpu", "ipex")


@dataclass(frozen=True)
class Cluster:
    """Where it is to run. ranks, sockets, cores, memory (bytes) and watts are a node's; None is
    this machine's own. cpu: a name in plan_machine.CPUS, or None for cores like these; gpu: one in
    plan_machine.GPUS, one a rank, whose memory then `memory` is. network: bit/s between nodes.
    gemm_rate: FLOP/s of a node, in place of what is measured or assumed.
    """

    nodes: int = 1
    ranks: int = 1
    sockets: int = 1
    cores: int | None = None
    memory: int | None = None
    cpu: str | None = None
    gpu: str | None = None
    network: float = 10e9
    watts: float | None = None
    gemm_rate: float | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a plan is computed from, once for all points of a sweep."""

    config: Config
    cluster: Cluster
    model: ModelPlan
    machine: Machine
    assumed: Assumed | None


def inputs_of(config: Config, cluster: Cluster, assumed: Assumed | None) -> Inputs:
    """Count the model and find the machine's rates. Raises UserError, EnvironmentProblem."""
    gpu = _gpu(config, cluster)
    here = gpu is None and cluster.cpu is None
    model = model_plan(config)
    if gpu is not None:
        machine = plan_machine.named_gpus(gpu, cluster.ranks)
    elif cluster.cpu is not None:
        machine = plan_machine.named(cluster.cpu, cluster.sockets, cluster.cores)
    else:
        dtype = cpu.select(config.backend, config.model).dtype
        prepacked = config.backend.prepack is not False and can_prepack(dtype)
        cores = cluster.cores
        machine = plan_machine.measured(model.products, dtype, cores, prepacked=prepacked)
    if config.model.dtype != "auto":
        machine = replace(machine, dtype=getattr(torch, config.model.dtype))
    if cluster.gemm_rate is not None:
        faster = cluster.gemm_rate / machine.gemm_rate
        machine = replace(
            machine,
            gemm_rate=cluster.gemm_rate,
            int8_rate=machine.int8_rate * faster,
            source=f"{machine.source}; product rate as given",
        )
    inputs = Inputs(config, cluster, model, machine, assumed)
    return _probed(inputs) if here and model.sizes.packs else inputs


def _probed(inputs: Inputs) -> Inputs:
    """With what some layers took here, on as many threads as a rank has."""
    run = _run(inputs)
    threads = min(_threads(inputs), len(os.sched_getaffinity(0)))
    backend = inputs.config.backend.model_copy(update={"threads": threads})
    config = inputs.config.model_copy(update={"backend": backend})
    rows = [row for ranks in run.steps for row in ranks[0]]
    rates = _rates(inputs, threads, run.setting)
    found = probed(config, inputs.model, rows, run.setting, rates)
    machine = replace(inputs.machine, slowdown=found.slowdown, runtime=found.runtime)
    return replace(inputs, machine=machine)


def _gpu(config: Config, cluster: Cluster) -> str | None:
    """The GPU that it is to run on, as `choice.choose` would decide; None for a CPU."""
    asked = cluster.gpu
    if asked is not None:
        if cluster.cpu is not None:
            raise UserError("--gpu and --cpu: name one of them")
        reason = choice.asks_for_a_cpu(config)
        if config.backend.name in _CPU_BACKENDS:
            reason = f"backend.name={config.backend.name}"
        if reason is not None:
            raise UserError(f"--gpu {asked}: {reason}")
        return asked
    known = ", ".join(plan_machine.GPUS)
    if config.backend.name == "cuda" and (cluster.cpu or cuda.why_not_usable()):
        raise UserError(f"backend.name=cuda: name a GPU with --gpu: {known}")
    if cluster.cpu is not None or config.backend.name in _CPU_BACKENDS:
        return None
    if choice.choose(config).value != "cuda":
        return None
    here = cuda.gpu_name()
    for name in plan_machine.GPUS:
        if name in here.split():
            return name
    raise UserError(f"{here} is not known: name one like it with --gpu: {known}")


@dataclass(frozen=True, eq=False)
class _Run:
    """What the config asks for: tokens that a row holds, what goes through, and its memory: bytes
    a rank that are there, and what decides how many it needs.
    """

    capacity: int
    work: Work
    steps: list[list[Rows]]
    available: float
    setting: Setting


def _run(inputs: Inputs) -> _Run:
    config, machine = inputs.config, inputs.machine
    ranks = inputs.cluster.nodes * inputs.cluster.ranks
    capacity = int(row_capacity(config).value)
    work = work_of(config, inputs.model, capacity, inputs.assumed)
    steps = sampled_steps(work, ranks)
    available = _available(inputs)
    setting = setting_of(
        config,
        inputs.model,
        steps,
        machine.dtype,
        capacity,
        ranks=ranks,
        available=available,
        keeps_best=work.evaluations > 0,
        gpu=machine.gpu_memory is not None,
    )
    named = work.named if _as_stored(inputs) else None
    setting = replace(setting, runtime=machine.runtime, named=named)
    return _Run(capacity, work, steps, available, setting)


def _as_stored(inputs: Inputs) -> bool:
    """Whether weights stay in the file's dtype: then pages that nobody reads are never loaded."""
    return getattr(inputs.model.description, "dtype", None) == inputs.machine.dtype


def plan(inputs: Inputs) -> dict[str, Any]:
    """{model, cluster, data, memory, step, run, checkpoint, change}: sizes in GiB, times in
    seconds, rates in GFLOP/s or token/s; `change` is what would make it fit, if it does not.
    """
    config, cluster, model = inputs.config, inputs.cluster, inputs.model
    run = _run(inputs)
    work, setting, available = run.work, run.setting, run.available
    memory = plan_memory.memory(model.sizes, setting)
    time = _times(inputs, run)
    weights = 4 * model.sizes.trained
    saved = weights + (4 * 2 * model.sizes.trained if "adam" in config.train.optimizer else 0)
    saved += weights if setting.keeps_best else 0
    kept = min(config.train.keep_checkpoints, max(1, work.steps // config.train.save_steps))
    return {
        "model": {
            "name": config.model.name_or_path,
            "parameters": model.sizes.parameters,
            "trainable": model.sizes.trained,
            "layers": model.sizes.why_not_fused or "fused",
        },
        "cluster": {
            "nodes": cluster.nodes,
            "ranks": cluster.nodes * cluster.ranks,
            "threads": _threads(inputs),
            "node": inputs.machine.name,
            "gpu": setting.gpu,
            "dtype": str(inputs.machine.dtype).removeprefix("torch."),
            "gemm_gflops": inputs.machine.gemm_rate / 1e9,
            "int8_gops": inputs.machine.int8_rate / 1e9,
            "memory_gb_per_s": inputs.machine.bandwidth / 1e9,
            "slowdown": inputs.machine.slowdown,
            "source": inputs.machine.source,
        },
        "data": {"source": work.source, "steps": work.steps, "row_capacity": run.capacity},
        "memory": {
            "layout": setting.layout,
            "row_tokens": setting.row_tokens,
            "parts": {name: part / cpu.GIB for name, part in vars(memory).items()},
            "total": memory.total / cpu.GIB,
            "needed": memory.needed / cpu.GIB,
            "available": available / cpu.GIB,
            "fits": memory.needed <= available,
            "largest_row": plan_memory.largest_row(model.sizes, setting, available),
            "rows": by_row(model, setting),
        },
        **time,
        "checkpoint": {
            "weights": weights / cpu.GIB,
            "each": saved / cpu.GIB,
            "kept": kept * saved / cpu.GIB,
        },
        "change": []
        if memory.needed <= available
        else changes(model, setting, available, cluster.nodes, cluster.ranks),
    }


def _available(inputs: Inputs) -> float:
    """Bytes for a rank: of this node what is free and what this process has taken itself."""
    cluster, of_gpu = inputs.cluster, inputs.machine.gpu_memory
    if of_gpu is not None:
        return of_gpu if cluster.memory is None else cluster.memory
    if cluster.memory is not None:
        return cluster.memory / cluster.ranks
    if cluster.cpu is not None:
        raise UserError("--cpu: give --memory, too: how much a node has")
    return (cpu.available_bytes() + cpu.rss_gib() * cpu.GIB) / cluster.ranks


def _threads(inputs: Inputs) -> int:
    """Of a rank; a GPU counts as one."""
    if inputs.machine.gpu_memory is not None:
        return 1
    chosen = inputs.config.backend.threads
    share = max(1, inputs.machine.cores // inputs.cluster.ranks)
    if not isinstance(chosen, int):
        return share
    if chosen > share:
        raise UserError(f"backend.threads={chosen}: a rank of this cluster has {share} cores")
    return chosen


def _rates(inputs: Inputs, threads: int, setting: Setting) -> plan_time.Rates:
    """What the roofline takes for so many threads (or GPUs) of a node."""
    machine = inputs.machine
    share = threads / machine.cores
    linear = machine.int8_rate if setting.layout == "int8" else machine.gemm_rate
    return plan_time.Rates(
        gemm=machine.gemm_rate * share, linear=linear * share, bandwidth=machine.bandwidth * share
    )


def _times(inputs: Inputs, run: _Run) -> dict[str, Any]:
    config, cluster, model = inputs.config, inputs.cluster, inputs.model
    work, steps, setting = run.work, run.steps, run.setting
    rates = _rates(inputs, _threads(inputs), setting)
    collective = _collective(config, gpu=setting.gpu)
    exchange = plan_time.exchange_seconds(
        model.sizes.trained, cluster.nodes, cluster.ranks, collective, cluster.network / 8
    )
    slowest, idle = [], 0.0
    for ranks in steps:
        times = [
            plan_time.rank_seconds(model, rates, rows, setting).slower(inputs.machine.slowdown)
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
    tokens = sum(int(lengths.sum()) for lengths, _ in rows) / len(steps)
    squares = sum(float((lengths.astype(float) ** 2).sum()) for lengths, _ in rows) / len(steps)
    supervised = sum(count for _, count in rows) / len(steps)
    cost = model.cost if model.teacher is None else with_teacher(model.cost, model.teacher.cost)
    flops = cost.linear * tokens + cost.attention * squares + cost.logits * supervised
    ranks_count = cluster.nodes * cluster.ranks
    # Forward alone is half of a product's work, and a third of what lies between.
    evaluation = work.evaluations * work.evaluation_tokens / tokens * seconds / 2
    total = work.steps * seconds + evaluation
    kwh = None
    if cluster.watts is not None:
        kwh = cluster.watts * cluster.nodes * total / 3.6e6
    return {
        "step": {
            "tokens": tokens,
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
        "run": {
            "steps": work.steps,
            "seconds": total,
            "evaluation_seconds": evaluation,
            "kwh": kwh,
        },
    }


def _collective(config: Config, *, gpu: bool) -> str:
    chosen = config.backend.collective
    if chosen != "auto":
        return chosen
    return "nccl" if gpu else "gloo"
