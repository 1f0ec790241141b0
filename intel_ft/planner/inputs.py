"""What a plan is computed from: the cluster, the model, the data, and what layers took here; called
from insight.plan.
"""

import re
from dataclasses import dataclass, replace

import torch

from intel_ft.backends import choice
from intel_ft.backends.cpu import select
from intel_ft.config import Config
from intel_ft.errors import UserError
from intel_ft.host import cpu, devices, topology
from intel_ft.models.prepacked import can_prepack
from intel_ft.planner import hardware, roofline
from intel_ft.planner.fit import setting_of
from intel_ft.planner.hardware import Machine
from intel_ft.planner.probe import probed
from intel_ft.planner.workload import (
    AssumedData,
    ExampleLengths,
    PlannedRun,
    Rows,
    example_lengths,
    planned_run,
    sampled_steps,
)
from intel_ft.training.memory import MemorySetting
from intel_ft.training.model_sizes import CountedModel, count_model
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
    model: CountedModel
    machine: Machine
    examples: ExampleLengths


def inputs_of(config: Config, cluster: Cluster, assumed: AssumedData | None) -> Inputs:
    """Count the model, find the machine's rates and read the data.

    Raises UserError, EnvironmentProblem.
    """
    gpu, chosen = _gpu(config, cluster), config.model.dtype
    here = gpu is None and cluster.cpu is None
    model = count_model(config)
    if gpu is not None:
        machine = hardware.named_gpus(gpu, cluster.ranks, chosen)
        if cluster.gpu is None:
            machine = replace(machine, gpu_memory=devices.memory_bytes(torch.device("cuda", 0)))
    elif cluster.cpu is not None:
        machine = hardware.named_cpus(cluster.cpu, cluster.sockets, cluster.cores, chosen)
    else:
        dtype = select(config.backend, config.model).dtype
        prepacked = config.backend.prepack is not False and can_prepack(dtype)
        cores = cluster.cores
        machine = hardware.measured_machine(model.products, dtype, cores, prepacked=prepacked)
    if cluster.gemm_rate is not None:
        faster = cluster.gemm_rate / machine.gemm_rate
        machine = replace(
            machine,
            gemm_rate=cluster.gemm_rate,
            int8_rate=machine.int8_rate * faster,
            source=f"{machine.source}; product rate as given",
        )
    inputs = Inputs(config, cluster, model, machine, example_lengths(config, assumed))
    ours = config.backend.name != "ipex"  # whose layers are not those that would be timed
    return _probed(inputs) if here and ours and model.sizes.packs else inputs


def _probed(inputs: Inputs) -> Inputs:
    """With what some layers took here, on as many threads as a rank has."""
    run = run_of(inputs)
    threads = min(threads_of(inputs), topology.read().usable)
    backend = inputs.config.backend.model_copy(update={"threads": threads})
    config = inputs.config.model_copy(update={"backend": backend})
    rows = [row for ranks in run.steps for row in ranks[0]]
    rates = rates_of(inputs, threads, run.setting)
    found = probed(config, inputs.model, rows, run.setting, rates)
    machine = replace(inputs.machine, slowdown=found.slowdown, runtime=found.runtime)
    return replace(inputs, machine=machine)


def _gpu(config: Config, cluster: Cluster) -> str | None:
    """The GPU that it is to run on, as `choice.choose` would decide; None for a CPU."""
    asked = cluster.gpu
    if asked is not None:
        if cluster.cpu is not None:
            raise UserError("--gpu and --cpu: name one of them")
        reason = choice.cpu_only_setting(config)
        if config.backend.name in _CPU_BACKENDS:
            reason = f"backend.name={config.backend.name}"
        if reason is not None:
            raise UserError(f"--gpu {asked}: {reason}")
        return asked
    known = ", ".join(hardware.GPUS)
    if config.backend.name == "cuda" and (cluster.cpu or devices.why_no_gpu()):
        raise UserError(f"backend.name=cuda: name a GPU with --gpu: {known}")
    if cluster.cpu is not None or config.backend.name in _CPU_BACKENDS:
        return None
    if choice.choose(config).value != "cuda":
        return None
    here = devices.gpu_name()
    for name in hardware.GPUS:
        if name in re.split(r"[\s-]", here):  # NVIDIA A100-SXM4-80GB
            return name
    raise UserError(f"{here} is not known: name one like it with --gpu: {known}")


@dataclass(frozen=True, eq=False)
class Run:
    """What the config asks for: tokens that a row holds, what goes through, and its memory: bytes
    a rank that are there, and what decides how many it needs.
    """

    capacity: int
    work: PlannedRun
    steps: list[list[Rows]]
    available: float
    setting: MemorySetting


def run_of(inputs: Inputs) -> Run:
    """What goes through a rank, and what memory it has for it."""
    config, machine = inputs.config, inputs.machine
    ranks = inputs.cluster.nodes * inputs.cluster.ranks
    capacity = int(row_capacity(config).value)
    work = planned_run(config, inputs.model, capacity, inputs.examples)
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
    named = inputs.examples.named if _as_stored(inputs) else None
    setting = replace(setting, runtime=machine.runtime, named=named)
    return Run(capacity, work, steps, available, setting)


def _as_stored(inputs: Inputs) -> bool:
    """Whether weights stay in the file's dtype: then pages that nobody reads are never loaded."""
    return getattr(inputs.model.description, "dtype", None) == inputs.machine.dtype


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


def threads_of(inputs: Inputs) -> int:
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


def rates_of(inputs: Inputs, threads: int, setting: MemorySetting) -> roofline.Rates:
    """What the roofline takes for so many threads (or GPUs) of a node."""
    machine = inputs.machine
    share = threads / machine.cores
    linear = machine.int8_rate if setting.layout == "int8" else machine.gemm_rate
    return roofline.Rates(
        gemm=machine.gemm_rate * share, linear=linear * share, bandwidth=machine.bandwidth * share
    )
