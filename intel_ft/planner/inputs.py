"""What a plan is computed from: cluster, model, data, and the time of a few layers here."""

import math
import re
from dataclasses import dataclass, replace

import torch

from intel_ft.backends import choice
from intel_ft.backends.cpu import select
from intel_ft.config import Config
from intel_ft.errors import UserError
from intel_ft.host import cpu, devices, topology
from intel_ft.layers.prepacked import can_prepack
from intel_ft.planner import hardware, roofline
from intel_ft.planner.hardware import Machine
from intel_ft.planner.lengths import AssumedData, ExampleLengths, example_lengths
from intel_ft.planner.workload import PlannedRun, Rows, planned_run, sampled_rows
from intel_ft.plurals import count_of
from intel_ft.training.memory import MemorySetting, data_bytes
from intel_ft.training.memory_setting import memory_setting
from intel_ft.training.model_sizes import CountedModel, count_model
from intel_ft.training.start import with_adapter

_CPU_BACKENDS = ("cpu", "ipex")


@dataclass(frozen=True)
class Cluster:
    """The machines that a run is planned for.

    ranks, sockets, cores, memory (bytes) and watts are per node; None stands for this machine's.
    cpu: a name in hardware.CPUS, or None for cores like these; gpu: a name in hardware.GPUS, one
    GPU per rank, and `memory` is a GPU's then; network: bit/s between nodes; gemm_rate: FLOP/s of a
    node, in place of the measured or assumed rate.
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
class Counted:
    """Model and cluster: what a plan knows before it reads the data and measures this machine.

    config: with the adapter that a run starts from; machine: the rates of this one are still NaN.
    """

    config: Config
    cluster: Cluster
    model: CountedModel
    machine: Machine


@dataclass(frozen=True, eq=False)
class PlanInputs(Counted):
    """What a plan is computed from, once for all points of a sweep."""

    examples: ExampleLengths


def inputs_of(
    config: Config, cluster: Cluster, assumed: AssumedData | None, *, time_layers: bool = False
) -> PlanInputs:
    """Count the model, read the data, and measure or look up the machine's rates.

    time_layers: also train some layers on this machine for a few steps, which corrects time and
    memory. Raises UserError, EnvironmentProblem.
    """
    inputs = with_data(counted(config, cluster, time_layers=time_layers), assumed, time_layers)
    return with_rates(inputs, time_layers=time_layers)


def counted(config: Config, cluster: Cluster, *, time_layers: bool = False) -> Counted:
    """Count the model, and look up the machine. Raises as `inputs_of` does."""
    config = with_adapter(config)
    gpu = _gpu(config, cluster)
    if time_layers and (why := _why_not_timed(config, cluster, gpu)):
        raise UserError(f"--measure: {why}")
    machine = _machine(config, cluster, gpu)
    found = Counted(config, cluster, count_model(config), machine)
    if time_layers and not found.model.sizes.packs:
        raise UserError("--measure times packed rows only, and this model does not support them")
    threads_of(found)  # refuses too many
    _available(found)  # refuses a cluster of unknown memory
    return found


def _machine(config: Config, cluster: Cluster, gpu: str | None) -> Machine:
    """A node of the cluster; if it is this machine, its rates are still NaN."""
    chosen = config.model.dtype
    if gpu is not None:
        machine = hardware.named_gpus(gpu, cluster.ranks, chosen)
        if cluster.gpu is None:
            machine = replace(machine, gpu_memory=devices.memory_bytes(torch.device("cuda", 0)))
        return machine
    if cluster.cpu is not None:
        return hardware.named_cpus(cluster.cpu, cluster.sockets, cluster.cores, chosen)
    return hardware.this_machine(select(config.backend, config.model).dtype, cluster.cores)


def with_data(found: Counted, assumed: AssumedData | None, whole: bool = False) -> PlanInputs:
    """Add the lengths of the examples; whole: see example_lengths."""
    examples = example_lengths(found.config, assumed, whole=whole)
    return PlanInputs(found.config, found.cluster, found.model, found.machine, examples)


def with_rates(inputs: PlanInputs, *, time_layers: bool = False) -> PlanInputs:
    """Add the measured rates of this machine, or those that are given for the cluster."""
    config, machine, given = inputs.config, inputs.machine, inputs.cluster.gemm_rate
    if math.isnan(machine.gemm_rate):
        prepacked = config.backend.prepack is not False and can_prepack(machine.dtype)
        machine = hardware.measured(
            machine, inputs.model.products, prepacked=prepacked, thorough=time_layers
        )
    if given is not None:
        machine = replace(
            machine,
            gemm_rate=given,
            int8_rate=machine.int8_rate * given / machine.gemm_rate,
            source=f"{machine.source}; GEMM rate as given",
        )
    inputs = replace(inputs, machine=machine)
    return _probed(inputs) if time_layers else inputs


def _why_not_timed(config: Config, cluster: Cluster, gpu: str | None) -> str | None:
    """Why no layers of this run can be timed on this machine, or None."""
    if gpu is not None or cluster.cpu is not None:
        return f"timings of this machine do not apply to {gpu or cluster.cpu}"
    if config.backend.name == "ipex":
        return "IPEX's layers are not timed"
    return None


def _probed(inputs: PlanInputs) -> PlanInputs:
    """The inputs corrected by what a few layers take here, on as many threads as a rank has."""
    from intel_ft.planner.probe import probed  # imports the Trainer

    run = run_of(inputs)
    threads = min(threads_of(inputs), topology.read().usable)
    backend = inputs.config.backend.model_copy(update={"threads": threads})
    config = inputs.config.model_copy(update={"backend": backend})
    rows = [row for ranks in run.steps for row in ranks[0]]
    rates = rates_of(inputs, threads, run.setting)
    probe = probed(config, inputs.model, rows, run.setting, rates)
    machine = replace(inputs.machine, slowdown=probe.slowdown, runtime=probe.runtime)
    return replace(inputs, machine=machine)


def _gpu(config: Config, cluster: Cluster) -> str | None:
    """The name of the GPU that the run would use, as `choice.choose` decides; None for a CPU."""
    chosen = cluster.gpu
    if chosen is not None:
        if cluster.cpu is not None:
            raise UserError("--gpu and --cpu exclude each other")
        reason = choice.cpu_only_setting(config)
        if config.backend.name in _CPU_BACKENDS:
            reason = f"backend.name={config.backend.name}"
        if reason is not None:
            raise UserError(f"--gpu {chosen}: {reason}")
        return chosen
    names = ", ".join(hardware.GPUS)
    if config.backend.name == "cuda" and (cluster.cpu or devices.why_no_gpu()):
        raise UserError(f"backend.name=cuda: choose a GPU with --gpu: {names}")
    if cluster.cpu is not None or config.backend.name in _CPU_BACKENDS:
        return None
    if choice.choose(config).value != "cuda":
        return None
    full_name = devices.gpu_name()
    for name in hardware.GPUS:
        if name in re.split(r"[\s-]", full_name):  # NVIDIA A100-SXM4-80GB
            return name
    raise UserError(
        f"plan has no data sheet for {full_name}: choose a similar GPU with --gpu: {names}"
    )


@dataclass(frozen=True, eq=False)
class Run:
    """The run of the config: its steps, the rows of some of them, and what its memory depends on.

    capacity: tokens that a row may hold; steps: over steps, then ranks; available: bytes per rank.
    """

    capacity: int
    work: PlannedRun
    steps: list[list[Rows]]
    available: float
    setting: MemorySetting


def run_of(inputs: PlanInputs) -> Run:
    """The run that the inputs describe."""
    config, machine = inputs.config, inputs.machine
    ranks = inputs.cluster.nodes * inputs.cluster.ranks
    work = planned_run(config, inputs.model, inputs.examples)
    steps = sampled_rows(work, ranks)
    available = _available(inputs)
    setting = memory_setting(
        config,
        inputs.model,
        machine.dtype,
        [(row.tokens, row.supervised) for shares in steps for share in shares for row in share],
        ranks=ranks,
        available=available,
        keeps_best=work.evaluations > 0,
        prepackable=machine.dtype == torch.bfloat16,
        gpu=machine.gpu_memory is not None,
        runtime=machine.runtime + data_bytes(int(inputs.examples.lengths.sum())),
        token_ids=inputs.examples.named,
        local_ranks=inputs.cluster.ranks,
    )
    return Run(work.plan.max_tokens_per_row, work, steps, available, setting)


def _available(inputs: Counted) -> float:
    """Bytes for one rank; on this machine, what is free and what this process uses itself."""
    cluster, of_gpu = inputs.cluster, inputs.machine.gpu_memory
    if of_gpu is not None:
        return of_gpu if cluster.memory is None else cluster.memory
    if cluster.memory is not None:
        return cluster.memory / cluster.ranks
    if cluster.cpu is not None:
        raise UserError("--cpu needs --memory: the memory of a node")
    return (cpu.available_bytes() + cpu.rss_gib() * cpu.GIB) / cluster.ranks


def threads_of(inputs: Counted) -> int:
    """Threads of a rank; a GPU counts as one. Raises UserError if a node has too few cores."""
    if inputs.machine.gpu_memory is not None:
        return 1
    chosen = inputs.config.backend.threads
    share = max(1, inputs.machine.cores // inputs.cluster.ranks)
    if not isinstance(chosen, int):
        return share
    if chosen > share:
        raise UserError(
            f"backend.threads={chosen}: a rank of this cluster has {count_of(share, 'core')}"
        )
    return chosen


def rates_of(inputs: PlanInputs, threads: int, setting: MemorySetting) -> roofline.Rates:
    """The roofline's rates for this many threads (or GPUs) of a node."""
    machine = inputs.machine
    share = threads / machine.cores
    linear = machine.int8_rate if setting.layout == "int8" else machine.gemm_rate
    return roofline.Rates(
        gemm=machine.gemm_rate * share, linear=linear * share, bandwidth=machine.bandwidth * share
    )
