"""From a configuration to a workload: everything checked and decided before the first step; called
from training.run and cli.validate.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from intel_ft import assets
from intel_ft.backends import choice, ipex
from intel_ft.backends.cpu import Backend
from intel_ft.batching.plan import Plan
from intel_ft.config import Config
from intel_ft.data.examples import Examples
from intel_ft.data.prepare import Prepared, prepare, split_fraction
from intel_ft.decisions import Decision
from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.host import cpu, devices, openmp
from intel_ft.kernels.build import gpu_kernels, kernels
from intel_ft.models import gemm_rate as gemm
from intel_ft.models import lora_init
from intel_ft.models.adapter import add_lora
from intel_ft.models.fast_path import apply_fast_path, compile_layers
from intel_ft.models.flops import activation_bytes, step_cost, with_teacher
from intel_ft.models.load import (
    check_folder,
    load_for_packing,
    load_tokenizer,
    model_folder,
    parameter_count,
)
from intel_ft.models.nf4 import NF4_BYTES, require_bitsandbytes
from intel_ft.training.callbacks import require_trackers, user_callbacks
from intel_ft.training.distillation import OWN_BASE, check_teacher, load_teacher, teacher_config
from intel_ft.training.trainable import Adapter, Trained, WholeModel
from intel_ft.training.trainer import Workload

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What the user gave, read and found good: model folder, tokenizer, data, the (text)
    configuration of the model, and callbacks of the user's own.
    """

    folder: Path
    tokenizer: Any
    training: Prepared
    evaluation: Prepared | None
    model_config: Any
    callbacks: list[Any]


def read_inputs(config: Config) -> Inputs:
    """Read and check tokenizer and data, and the model folder without loading its weights.

    Raises UserError for anything wrong with them, or with what the method or the user's callbacks
    need, EnvironmentProblem where they are not installed; changes nothing on disk.
    """
    callbacks = require_installed(config)
    folder = model_folder(config.model)
    check_folder(folder, config.model)
    tokenizer = load_tokenizer(config.model)
    check_teacher(config, tokenizer)
    training, evaluation = read_data(config, tokenizer)
    for name, part in (("train", training), ("eval", evaluation)):
        for line in part.report.lines() if part is not None else ():
            logger.info("%s: %s", name, line)
    text = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=config.model.trust_remote_code
    ).get_text_config()
    window = getattr(text, "max_position_embeddings", None)
    if window and training.report.longest > window:
        raise UserError(
            f"{config.data.train}: its longest example has {training.report.longest} tokens, the "
            f"model's context window is {window}: set data.max_length={window} and data.on_long"
        )
    return Inputs(folder, tokenizer, training, evaluation, text, callbacks)


def require_installed(config: Config) -> list[Any]:
    """The user's callbacks. Raises EnvironmentProblem where backend, trackers or what the method
    needs are not there, UserError for a callback that cannot be made.
    """
    compute = choice.choose(config).value
    require_trackers(config.train)
    if config.base_dtype == "nf4":
        require_bitsandbytes("an NF4 base (method.name=qlora)", "model.base_dtype=int8")
    elif compute == "cuda" and (paged := config.train.optimizer).startswith("paged"):
        require_bitsandbytes(f"train.optimizer={paged}", "adamw_torch_fused")
    return user_callbacks(config.train.callbacks)


def read_data(config: Config, tokenizer: Any) -> tuple[Prepared, Prepared | None]:
    """The examples to train on and those to evaluate on, tokenized. Raises UserError."""
    data = config.data
    training = prepare(data, assets.resolve(data.train), tokenizer)
    if data.eval is not None:
        other = data.model_copy(update={"split": data.eval_split or data.split})
        return training, prepare(other, assets.resolve(data.eval), tokenizer)
    if data.eval_fraction:
        return split_fraction(training, data.eval_fraction, config.train.seed)
    return training, None


def build(
    config: Config, inputs: Inputs, world: World, start: Path | None = None
) -> tuple[Any, Workload, list[Decision]]:
    """The model with what the method trains, the workload, and every value that was decided on the
    way. `start` is the checkpoint that the run goes on from; its weights are not loaded yet.

    Raises EnvironmentProblem where this machine cannot hold the run.
    """
    compute = choice.choose(config)
    backend = choice.select(
        config.backend, config.model, compute.value, world.local_size, world.local_rank
    )
    row_tokens = row_capacity(config)
    require_memory(config, inputs, backend, row_tokens.value, world.local_size)
    transformers.set_seed(config.train.seed)
    activations = activation_bytes(
        inputs.model_config, int(row_tokens.value), config.train.activation_checkpointing
    )
    trained: Trained
    if config.method.trains_all:
        trained, why_not_packed, how = _whole_model(config, backend)
    else:
        trained, why_not_packed, how = _adapter(config, backend, activations, world, start)
    model, packed = trained.model, why_not_packed is None
    cost = step_cost(model)
    teacher = None
    if config.method.name == "distill":
        tokens = len(inputs.tokenizer)
        teacher = load_teacher(config, backend.dtype, tokens, packed=packed)
        if isinstance(teacher.model, torch.nn.Module):
            teacher.model.to(backend.device)
        cost = with_teacher(cost, teacher.cost or cost)
    examples = inputs.training.examples
    plan = Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=config.train.global_batch_size,
        max_tokens_per_row=int(row_tokens.value),
        seed=config.train.seed,
        quadratic_cost=cost.quadratic_cost,
        one_example_a_row=not packed,
    )
    gemm_rate = _gemm_rate(model, backend, int(row_tokens.value), examples)
    work = Workload(
        plan=plan,
        examples=examples,
        cost=cost,
        gemm_rate=gemm_rate,
        packed=packed,
        world=world,
        trained=trained,
        evaluation=None if inputs.evaluation is None else inputs.evaluation.examples,
        dtype=backend.dtype,
        teacher=teacher,
        device=backend.device,
        optimize=backend.optimize,
    )
    decisions = [
        compute,
        *backend.decisions,
        openmp.wait_policy(),
        gpu_kernels() if backend.device.type == "cuda" else kernels().decision,
        *how,
        row_tokens,
        Decision("packing", "on", "checked: this model keeps packed segments apart")
        if packed
        else Decision("packing", "off, one example a row", str(why_not_packed)),
        *((ipex.archived(gemm_rate),) if config.backend.name == "ipex" else ()),
    ]
    for decision in decisions:
        logger.info("%s", decision)
    report = inputs.training.report
    decisions += [
        Decision("data.format", report.format, report.format_reason),
        Decision("data.template", report.template, report.template_reason),
    ]
    return model, work, decisions


def _adapter(
    config: Config, backend: Backend, activations: int, world: World, start: Path | None
) -> tuple[Adapter, str | None, list[Decision]]:
    """The base with an adapter, why it cannot take packed rows, and what was decided about it."""
    method = config.method
    base, why_not_packed = load_for_packing(config.model, backend.dtype)
    model = add_lora(base, method, base_id(config), config.model.revision)
    begun: lora_init.Initial = {}
    if method.init in {"pissa", "olora"}:
        if start is None:
            begun = lora_init.from_base(model, method.init, world.broadcast)
        else:
            begun = lora_init.load_from_original(start)[1]
        lora_init.subtract_from_base(model, begun)
    how = apply_fast_path(model, config, activations, world.local_size, backend.device)
    return Adapter(model, begun), why_not_packed, how


def _whole_model(config: Config, backend: Backend) -> tuple[WholeModel, str | None, list[Decision]]:
    """The model with float32 weights that all train, as `_adapter` returns it."""
    model, why_not_packed = load_for_packing(config.model, torch.float32)
    decisions = [
        Decision("trained weights", "float32", "each step's change is smaller than bf16 can hold"),
        Decision("decoder layers", "the model's own", "all of their weights train"),
        compile_layers(model, config),
    ]
    return WholeModel(model.to(backend.device).requires_grad_(True)), why_not_packed, decisions


def base_id(config: Config) -> str:
    """The base's own name: a Hub id or a shipped asset's stays one, a folder becomes absolute."""
    path = Path(config.model.name_or_path)
    return str(path.resolve()) if path.is_dir() else config.model.name_or_path


def require_memory(
    config: Config, inputs: Inputs, backend: Backend, row_tokens: str, sharing: int
) -> None:
    """Refuse, before the weights are read, a run that this machine plainly cannot hold; `sharing`
    ranks do the same here, each on a GPU of its own if they are on GPUs.
    """
    dtype = backend.dtype
    tokens = min(int(row_tokens), int(inputs.training.examples.lengths.sum()))
    parameters, method = parameter_count(inputs.folder), config.method
    weights = parameters * dtype.itemsize
    if method.trains_all:  # weights and gradients, AdamW's two moments, copies to multiply with
        moments = 8 if "adamw" in config.train.optimizer else 0
        copies = dtype.itemsize if dtype != torch.float32 else 0
        best = 4 if inputs.evaluation is not None else 0  # so far, kept aside
        weights = parameters * (8 + moments + copies + best)
    if method.name == "distill" and (method.trains_all or method.teacher != OWN_BASE):
        weights += parameter_count(model_folder(teacher_config(config))) * dtype.itemsize
    activations = activation_bytes(
        inputs.model_config, tokens, config.train.activation_checkpointing
    )
    available = cpu.available_bytes() // sharing
    if backend.device.type == "cuda":
        available = devices.available_bytes(backend.device)
        if config.base_dtype == "nf4":
            outside = 2 * inputs.model_config.vocab_size * inputs.model_config.hidden_size
            weights = outside * dtype.itemsize + int(max(0, parameters - outside) * NF4_BYTES)
    if weights + activations > available:
        raise out_of_memory(
            config,
            f"at start: {weights / cpu.GIB:.1f} GiB of weights, about "
            f"{activations / cpu.GIB:.1f} GiB of activations for a row of {tokens} tokens, "
            f"{available / cpu.GIB:.1f} GiB available",
        )


def out_of_memory(config: Config, when: str) -> EnvironmentProblem:
    """The error that says what to lower."""
    remedies = ["lower train.max_tokens_per_row and data.max_length"]
    if not config.train.activation_checkpointing:
        remedies.append("set train.activation_checkpointing=true")
    remedies.append("or take a smaller model")
    return EnvironmentProblem(f"out of memory {when}: {', '.join(remedies)}")


def row_capacity(config: Config) -> Decision:
    """Row capacity: long enough that matrix products run at full rate, and for any example."""
    chosen = config.train.max_tokens_per_row
    if isinstance(chosen, int):
        return Decision("train.max_tokens_per_row", str(chosen), "set in the config")
    tokens = max(2048, config.data.max_length)
    return Decision("train.max_tokens_per_row", str(tokens), "2048, or data.max_length if longer")


def _gemm_rate(base: Any, backend: Backend, row_tokens: int, examples: Examples) -> float:
    share = float(examples.supervised.mean())
    products = gemm.linear_products(base, row_tokens, share)
    most = 2.5e10 if backend.device.type == "cpu" else None
    return gemm.model_rate(products, backend.dtype, 0.03, most, backend.device)
