"""From a config to a training that is ready to start: everything checked, decided and loaded."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from intel_ft.artifacts.int4_base import Int4Base
from intel_ft.backends import choice, ipex
from intel_ft.backends.cpu import Backend
from intel_ft.config import Config
from intel_ft.config_sources import Source
from intel_ft.data.tokenized import Tokenized, of_prepared
from intel_ft.data.training_set import compared, tokenize, training_and_validation
from intel_ft.data.validation_split import Shared, shared_rows
from intel_ft.decisions import Decision
from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.host import cpu, devices, openmp
from intel_ft.host.launcher_env import LauncherEnv
from intel_ft.kernels.build import gpu_kernels, kernels
from intel_ft.kernels.gemm.register_rate import RegisterRate, register_rate
from intel_ft.layers.nf4 import require_bitsandbytes
from intel_ft.layers.prepacked import can_prepack
from intel_ft.models import gemm_rate
from intel_ft.models.exportable import export_decision
from intel_ft.models.frozen_base import frozen_dtype
from intel_ft.models.load import check_base, load_for_packing, load_tokenizer, model_folder
from intel_ft.models.new_tokens import add_rows, new_token_ids, warn_unseen
from intel_ft.models.reward import with_score
from intel_ft.models.saved_adapter import apply_adapter
from intel_ft.models.start_adapter import describe_adapter
from intel_ft.models.streamed import streamed_layout
from intel_ft.models.tokenizer import adapter_folder, require_embedded
from intel_ft.quantization import base_settings
from intel_ft.training.assemble import assemble
from intel_ft.training.callbacks import require_trackers, user_callbacks
from intel_ft.training.decide import make_plan, sampled_steps, total_steps
from intel_ft.training.distillation import check_teacher
from intel_ft.training.memory import (
    CONTEXT,
    OVERESTIMATE,
    RUNTIME,
    can_shard,
    data_bytes,
    estimate_memory,
)
from intel_ft.training.memory_setting import memory_setting
from intel_ft.training.model_sizes import (
    CountedModel,
    ModelSizes,
    count_model,
    describe_mixture,
)
from intel_ft.training.shared_prefixes import why_not_shared
from intel_ft.training.start import check_adapter
from intel_ft.training.workload import Training
from intel_ft.versions import installed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What the user provided, read and checked. model: without weights, with its adapter.

    shared: what the validation set shares with the training set; None without one, or if training
    examples are streamed.
    """

    folder: Path
    model: CountedModel
    tokenizer: Any
    training: Tokenized
    validation: Tokenized | None
    shared: Shared | None
    callbacks: list[Any]


def read_inputs(config: Config) -> Inputs:
    """Read and check tokenizer and data, and the model folder without loading its weights.

    Changes nothing on disk. Raises UserError for anything wrong with them or with the user's
    callbacks, EnvironmentProblem for a package that the config needs and that is not installed.
    """
    callbacks = require_installed(config)
    folder = model_folder(config.model)
    check_base(folder, config.model)
    tokenizer = load_tokenizer(config.model)
    check_adapter(config.model, tokenizer)
    check_teacher(config, tokenizer)
    model = count_model(config)  # refuses target modules and embeddings that cannot be trained
    training, validation = read_data(config, tokenizer)
    for name, part in (("train", training), ("eval", validation)):
        for line in part.lines() if part is not None else ():
            logger.info("%s: %s", name, line)
    shared = None
    if validation is not None and not config.data.streaming:
        shared = shared_rows(training.examples, validation.examples)
        if shared.prompts:
            logger.warning("%s", shared)
    text = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=config.model.trust_remote_code
    ).get_text_config()
    window = getattr(text, "max_position_embeddings", None)
    longest = config.data.max_length if config.data.streaming else training.report.longest
    if window and longest > window:
        raise UserError(
            f"{config.data.train_name}: its longest example has {longest} tokens,"
            f" but the model's context window is {window}: set data.max_length={window} and"
            " data.on_long"
        )
    parts = [training] if validation is None else [training, validation]
    rows = model.sizes.vocabulary  # with those of new tokens
    beyond = (sorted(part.examples.ids_beyond(rows)) for part in parts)
    require_embedded(tokenizer, rows, (np.array(ids, np.int64) for ids in beyond))
    warn_unseen(config.model, training.examples.ids_beyond)
    return Inputs(folder, model, tokenizer, training, validation, shared, callbacks)


def require_installed(config: Config) -> list[Any]:
    """Check that what the config needs is installed; returns the user's callbacks.

    Raises EnvironmentProblem for a backend, tracker or package that is missing, UserError for a
    callback that cannot be imported or constructed.
    """
    compute = choice.choose(config).value
    require_trackers(config.train)
    if config.base_dtype == "nf4":
        require_bitsandbytes("an NF4 base (method.name=qlora)", "model.base_dtype=int8")
    elif config.base_dtype == "int4":
        base_settings(config.model.quantization)
        _require_compression()
    elif compute == "cuda" and (paged := config.train.optimizer).startswith("paged"):
        require_bitsandbytes(f"train.optimizer={paged}", "adamw_torch_fused")
    return user_callbacks(config.train.callbacks)


def _require_compression() -> None:
    """Raise EnvironmentProblem unless what compresses an int4 base is installed."""
    for package in ("openvino", "nncf", "optimum-intel"):
        if installed(package) is None:
            raise EnvironmentProblem(
                f"model.base_dtype=int4 needs the package {package}, which is not installed: pip "
                "install 'intel_ft[openvino]', or choose model.base_dtype=nf4"
            )


def read_data(config: Config, tokenizer: Any) -> tuple[Tokenized, Tokenized | None]:
    """The training examples and the validation set, tokenized. Raises UserError."""
    data = config.data
    if (kind := config.method.compares) is not None:
        sets = compared(data, kind, tokenizer, config.train.seed)
        return of_prepared(sets[0]), None if sets[1] is None else of_prepared(sets[1])
    training, validation = training_and_validation(data, tokenizer, config.train.seed)
    if data.eval is not None:
        split = data.eval_split or data.split
        if (data.eval, split) in [(one.path, one.split or data.split) for one in data.sources]:
            logger.warning("data.eval is the training data itself: set data.eval_split")
        own = data.model_copy(update={"weight_column": None})  # which is of training alone
        return training, tokenize(own.of(Source(path=data.eval, split=split)), tokenizer)
    if validation is None:
        for source, report in zip(data.sources, training.reports, strict=True):
            for name in report.other_splits:
                if name.startswith(("val", "dev")):
                    logger.info(
                        "data.eval=%s data.eval_split=%s would evaluate on it", source.path, name
                    )
    return training, validation


def build(
    config: Config,
    inputs: Inputs,
    world: World,
    start: Path | None = None,
    int4: Int4Base | None = None,
) -> tuple[Training, list[Decision]]:
    """Load the base, assemble the training, and measure what MFU and utilization are relative to.

    Returns every value that was decided on the way, too. `start` is the checkpoint to resume from;
    its weights are not loaded yet; `int4` the weights for model.base_dtype=int4. Raises
    EnvironmentProblem if this machine cannot hold the run.
    """
    compute = choice.choose(config)
    backend = choice.select(
        config.backend,
        config.model,
        compute.value,
        world.local_size,
        world.local_rank,
        mixture=inputs.model.sizes.mixtures > 0,
    )
    require_memory(config, inputs, backend, world)
    transformers.set_seed(config.train.seed)
    layout = streamed_layout(config, world.local_size, on_gpu=backend.device.type != "cpu")
    dtype = _loaded_dtype(config, backend, world)
    base, why_not_packed = load_for_packing(config.model, dtype, layout)
    if config.method.trains_all and config.model.merged_adapter is not None:
        base = apply_adapter(base, adapter_folder(config.model.merged_adapter)).merge_and_unload()
    add_rows(base, new_token_ids(config.model))
    if config.method.name == "reward":
        base = with_score(base, config.train.seed)
    training, how = assemble(
        config,
        base,
        inputs.training.examples,
        backend,
        world,
        why_not_packed=why_not_packed,
        validation=None if inputs.validation is None else inputs.validation.examples,
        parts=inputs.training.parts,
        vocabulary=len(inputs.tokenizer),
        start=start,
        int4=int4,
        folder=inputs.folder,
    )
    limit = _register_rate(training)
    training.meter.register_rate = None if limit is None else limit.rate
    training.meter.gemm_rate = _gemm_rate(training)
    decisions = [
        compute,
        *backend.decisions,
        *describe_adapter(config.model),
        *describe_mixture(inputs.model.sizes),
        openmp.wait_policy(),
        gpu_kernels() if backend.device.type == "cuda" else kernels().decision,
        *how,
    ]
    if config.backend.name == "ipex":
        decisions.append(ipex.archived(training.meter.gemm_rate))
    for decision in decisions:
        logger.info("%s", decision)
    report = inputs.training.report
    return training, [
        *decisions,
        Decision("data.format", report.format, report.format_reason),
        Decision("data.template", report.template, report.template_reason),
        export_decision(base.config.model_type, scores=config.method.name == "reward"),
    ]


def _loaded_dtype(config: Config, backend: Backend, world: World) -> torch.dtype | Literal["auto"]:
    """What the base is loaded in: weights that will be sharded are mapped, not copied."""
    if not config.method.trains_all:
        return backend.dtype
    return "auto" if config.backend.shard and world.size > 1 else torch.float32


def _gemm_rate(training: Training) -> float:
    """FLOP/s of this rank over the model's own GEMMs."""
    data, model = training.data, training.model
    share = float(data.plan.supervised.sum() / data.plan.lengths.sum())
    products = gemm_rate.linear_gemms(model.network, data.plan.max_tokens_per_row, share)
    if model.device.type != "cpu":
        return gemm_rate.model_rate(products, model.dtype, 0.01, device=model.device)
    # A GEMM takes about three times as long as from registers. On few cores a smaller part will do,
    # and the run starts seconds earlier.
    most_flops = 0.003 * (training.meter.register_rate or math.inf)
    part = (most_flops, 2048) if most_flops < 2.5e10 else (2.5e10, 8192)
    return gemm_rate.model_rate(products, model.dtype, 0.01, part[0], most_columns=part[1])


def _register_rate(training: Training) -> RegisterRate | None:
    """What the instruction of the frozen GEMMs reaches on this rank's cores; None on a GPU."""
    model = training.model
    if model.device.type != "cpu":
        return None
    return register_rate(frozen_dtype(model.network), 0.05)


def require_memory(config: Config, inputs: Inputs, backend: Backend, world: World) -> None:
    """Raise EnvironmentProblem, before the weights are read, if they and a step cannot fit.

    The estimate may be `OVERESTIMATE` times too high, so only a run that is beyond that is refused;
    for one in between there is a warning.
    """
    model, examples, gpu = (
        inputs.model,
        inputs.training.examples,
        backend.device.type != "cpu",
    )
    lengths, supervised = examples.lengths, examples.supervised_counts
    not_shared = why_not_shared(config, model.description, packed=model.sizes.packs)
    plan = make_plan(
        config,
        lengths,
        supervised,
        model.cost,
        packed=model.sizes.packs,
        parts=inputs.training.parts,
        shared=None if not_shared else examples,
    )
    rows = [
        (int(lengths[row].sum()) - plan.saved(row), int(supervised[row].sum()))
        for step in sampled_steps(plan, total_steps(config.train, plan))
        for share in step.shares(world.size)
        for row in plan.rows(share)
    ]
    resident = cpu.rss_gib() * cpu.GIB
    # What the estimate counts as runtime is partly there already, and so not in what is free.
    available = cpu.available_bytes() / world.local_size + resident
    if gpu:
        available = devices.available_bytes(backend.device) + CONTEXT
    setting = memory_setting(
        config,
        model,
        backend.dtype,
        rows,
        ranks=world.size,
        available=available,
        keeps_best=inputs.validation is not None,
        prepackable=can_prepack(backend.dtype),
        gpu=gpu,
        runtime=max(RUNTIME + data_bytes(int(lengths.sum())), resident),
        token_ids=examples.highest_id + 1,
        local_ranks=world.local_size,
    )
    estimate = estimate_memory(model.sizes, setting)
    if estimate.needed <= available:
        return
    weights = estimate.base + estimate.linear_layers + estimate.experts + estimate.loading
    weights += estimate.teacher + estimate.trained
    fact = (
        f"about {estimate.needed / cpu.GIB:.1f} GiB needed per rank "
        f"({(weights + estimate.optimizer) / cpu.GIB:.1f} GiB for weights and optimizer, "
        f"{estimate.activations / cpu.GIB:.1f} GiB for the activations of a row of "
        f"{setting.row_tokens} tokens), {available / cpu.GIB:.1f} GiB available"
    )
    if estimate.needed > OVERESTIMATE * available:
        raise out_of_memory(config, f"at start: {fact}", model.sizes)
    logger.warning("memory may run out: %s: %s", fact, _memory_remedies(config, model.sizes))


def out_of_memory(config: Config, when: str, sizes: ModelSizes | None = None) -> EnvironmentProblem:
    """The error for too little memory, with the settings to change; sizes: of the model."""
    return EnvironmentProblem(f"out of memory {when}: {_memory_remedies(config, sizes)}")


def _memory_remedies(config: Config, sizes: ModelSizes | None) -> str:
    remedies = ["lower train.max_tokens_per_row and data.max_length"]
    if not config.train.activation_checkpointing:
        remedies.append("set train.activation_checkpointing=true")
    if not config.backend.shard and sizes is not None and can_shard(config, sizes):
        remedies.append("share the weights of several ranks with backend.shard=true")
    if LauncherEnv.detect().local_size > 1:
        remedies.append("start fewer ranks on each host with --ranks-per-host")
    return ", ".join([*remedies, "or use a smaller model"])
