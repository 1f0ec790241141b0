"""Assembles a training from a base model and examples: the one builder of `train` and `bench`.

`train` gives it a loaded base, `bench` and `plan` a random one. What is decided about the model
(adapter, layout of the frozen weights, fused layers, row capacity) is thus the same in all three.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from intel_ft.artifacts.int4_base import Int4Base
from intel_ft.backends.cpu import Backend
from intel_ft.batching.stream_plan import plan_of_stream
from intel_ft.config import Config
from intel_ft.config_method import CHANGES_BASE
from intel_ft.data.mixture import Part
from intel_ft.data.stream import Stream
from intel_ft.decisions import Decision
from intel_ft.distributed.world import World
from intel_ft.models import lora_init
from intel_ft.models.adapter import add_lora, prepare_to_train
from intel_ft.models.compressed import use_compressed
from intel_ft.models.fast_path import apply_fast_path, compile_layers, why_not_own_layers
from intel_ft.models.flops import step_cost, with_teacher
from intel_ft.models.new_tokens import describe_tokens, new_token_ids
from intel_ft.models.routing import watch
from intel_ft.models.saved_adapter import apply_adapter
from intel_ft.models.shared_base import BaseFiles
from intel_ft.models.start_adapter import negative_of
from intel_ft.models.targets import adapted_modules
from intel_ft.models.tokenizer import adapter_folder
from intel_ft.templates.answers import Compared
from intel_ft.templates.examples import ExampleSet
from intel_ft.training import sharding
from intel_ft.training.comparison import Comparison
from intel_ft.training.decide import make_plan, row_capacity
from intel_ft.training.distillation import load_teacher
from intel_ft.training.host_base import host_base
from intel_ft.training.memory_setting import full_row_activations
from intel_ft.training.meter import Meter
from intel_ft.training.model_sizes import sizes_for
from intel_ft.training.preference_loss import PreferenceLoss
from intel_ft.training.shared_prefixes import share_decision
from intel_ft.training.trainable import Adapter, TrainedWeights, WholeModel
from intel_ft.training.workload import Training, TrainingData, TrainingModel


def assemble(
    config: Config,
    base: Any,
    examples: ExampleSet,
    backend: Backend,
    world: World,
    *,
    why_not_packed: str | None = None,
    validation: ExampleSet | None = None,
    parts: tuple[Part, ...] = (),
    vocabulary: int = 0,
    start: Path | None = None,
    int4: Int4Base | None = None,
    folder: Path | None = None,
) -> tuple[Training, list[Decision]]:
    """The training of `config` on a frozen `base`, changed in place, and what was decided.

    why_not_packed: why `base` takes one example per row, or None; parts: what an epoch takes from
    each source; vocabulary: tokens of the tokenizer, for distillation; start: the checkpoint to
    resume from, whose weights are not loaded here; int4: the weights for model.base_dtype=int4;
    folder: the model whose weights `base` has, None if it has others.
    Raises EnvironmentProblem for a layout of the weights that this CPU does not have.
    """
    packed = why_not_packed is None
    sharing = share_decision(config, base, backend.device, packed=packed)
    weights: TrainedWeights
    if config.method.trains_all:
        weights, decisions = _whole_model(config, base, backend, world)
    else:
        weights, decisions = _adapter(config, base, backend, world, start, int4, folder)
    cost, teacher = step_cost(weights.model), None
    if config.method.name == "distill":
        teacher = load_teacher(config, backend.dtype, vocabulary, packed=packed)
        if isinstance(teacher.model, torch.nn.Module):
            teacher.model.to(backend.device)
        cost = with_teacher(cost, teacher.cost or cost)
    routing, watched = watch(weights.model, config.train.router_aux_loss)
    plan = make_plan(
        config,
        examples.lengths,
        examples.supervised_counts,
        cost,
        packed=packed,
        parts=parts,
        shared=examples if sharing.value == "on" else None,
        weights=examples.weights,
        examples=examples,
    )
    keeps_together = config.train.keep_answers_together
    if isinstance(examples, Stream):
        plan = plan_of_stream(plan, examples, keeps_together=keeps_together)
    loss = PreferenceLoss.of(config.method)
    comparisons = [
        Comparison(loss, part) if isinstance(part, Compared) else None
        for part in (examples, validation)
    ]
    training = Training(
        data=TrainingData(plan, examples, validation, packed, *comparisons),
        model=TrainingModel(weights, backend.dtype, backend.device, teacher, backend.optimize),
        meter=Meter(cost),
        world=world,
        routing=routing,
    )
    if config.backend.shard:
        decisions.append(sharding.describe(world))
        shards = sharding.shard(
            weights.model, world, backend.dtype, trains_all=config.method.trains_all
        )
        training = replace(training, model=replace(training.model, shards=shards))
    packing = Decision("packing", "on", "checked: this model keeps packed segments apart")
    if why_not_packed is not None:
        packing = Decision("packing", "off, one example per row", why_not_packed)
    return training, [*decisions, *watched, row_capacity(config), packing, sharing]


def base_id(config: Config) -> str:
    """The base's name in an adapter: a Hub id or an asset as written, a folder's absolute path."""
    path = Path(config.model.name_or_path)
    return str(path.resolve()) if path.is_dir() else config.model.name_or_path


def _adapter(
    config: Config,
    base: Any,
    backend: Backend,
    world: World,
    start: Path | None,
    int4: Int4Base | None,
    folder: Path | None,
) -> tuple[Adapter, list[Decision]]:
    method, settings = config.method, config.model
    if settings.continued_adapter is not None:
        folder = adapter_folder(settings.continued_adapter)
        adapted = apply_adapter(base, folder, trains=True)
        model = prepare_to_train(adapted, base_id(config), settings.revision)
    else:
        tokens = new_token_ids(settings)
        model = add_lora(base, method, base_id(config), settings.revision, tokens)
    initial = _changes_of_base(config, model, world, start)
    lora_init.subtract_from_base(model, initial)
    if int4 is not None:
        if method.init == "loftq" and start is None:
            _start_from(model, lambda: lora_init.from_rounding(model, int4.weights), world)
        use_compressed(model, int4.weights)
    decisions = describe_tokens(settings) + adapted_modules(model, method)
    if config.backend.shard:
        why = str(why_not_own_layers(config))
        return Adapter(model, initial), [*decisions, Decision("decoder layers", "not fused", why)]
    activations = full_row_activations(config, sizes_for(config, model), backend.dtype)
    original = folder if not initial and not new_token_ids(settings) and int4 is None else None
    source = None if original is None else BaseFiles(original)
    shared = host_base(config, world, backend.device, persistent=source is not None)
    decisions += apply_fast_path(
        model, config, activations, world.local_size, backend.device, shared, source
    )
    return Adapter(model, initial), decisions


def _changes_of_base(
    config: Config, model: Any, world: World, start: Path | None
) -> lora_init.Initial:
    """What is subtracted from the base: LoRA's start, or the negative of a merged adapter."""
    method, merged = config.method, config.model.merged_adapter
    if method.init not in CHANGES_BASE and merged is None:
        return {}
    if start is not None:
        return lora_init.load_from_original(start, method.r)[1]
    if merged is not None:
        return negative_of(model, adapter_folder(merged))
    return _start_from(model, lambda: lora_init.from_base(model, method.init), world)


def _start_from(
    model: Any, compute: Callable[[], lora_init.Initial], world: World
) -> lora_init.Initial:
    """What LoRA starts as, the same on every rank."""
    with world.raise_on_all_ranks():
        initial = compute()
    for part in (part for pair in initial.values() for part in pair):
        world.broadcast(part)
    lora_init.start_as(model, initial)
    return initial


def _whole_model(
    config: Config, base: Any, backend: Backend, world: World
) -> tuple[WholeModel, list[Decision]]:
    model = base.requires_grad_(True)
    if not (config.backend.shard and world.size > 1):  # parts become float32 when it is sharded
        model = model.float().to(backend.device)
    decisions = [
        *describe_tokens(config.model),
        Decision("trained weights", "float32", "bf16 would round most updates to nothing"),
        Decision("decoder layers", "not fused", "all of their weights train"),
        compile_layers(model, config),
    ]
    return WholeModel(model), decisions
