"""The memory formula against what autograd, optimizers and layouts really take, and its use."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from support.model_fixtures import SHAPE, row_of

from intel_ft.backends.cpu import Backend
from intel_ft.bench.workloads import synthetic_examples, workload
from intel_ft.config import Config, build
from intel_ft.config_method import MethodConfig
from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem
from intel_ft.files import write_json
from intel_ft.layers import packed_attention
from intel_ft.layers.nf4 import NF4_BYTES
from intel_ft.models.adapter import add_lora, fuse
from intel_ft.models.fast_path import apply_fast_path
from intel_ft.models.loss import loss_sum
from intel_ft.training import setup
from intel_ft.training.assemble import assemble
from intel_ft.training.memory import (
    OVERESTIMATE,
    RUNTIME,
    MemorySetting,
    _saved,
    data_bytes,
    estimate_memory,
    largest_row,
)
from intel_ft.training.memory_setting import full_row_activations, memory_setting
from intel_ft.training.model_sizes import (
    CountedModel,
    count_description,
    count_model,
    describe_mixture,
    model_sizes,
)

SHAPES = Path(__file__).parents[3] / "docs" / "shapes"
GIB = 2**30
EQUAL = MemorySetting("as loaded", 2048, 1024, uneven=False, checkpointing=False)


def config(name: object = "tiny-python-llama", **sections: dict[str, object]) -> Config:
    values: dict[str, dict[str, object]] = {
        "model": {"name_or_path": str(name)},
        "data": {"train": "docstring-to-python/train.jsonl"},
        "output": {"directory": "out"},
    }
    for section, options in sections.items():
        values[section] = values.get(section, {}) | options
    return build(values, "test")


@pytest.fixture(scope="module")
def seven() -> CountedModel:
    return count_model(config(SHAPES / "llama-2-7b"))


def _model(dtype: torch.dtype) -> torch.nn.Module:
    shape = SHAPE | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4}
    base = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**shape), dtype=dtype, attn_implementation=packed_attention.NAME
    )
    base.requires_grad_(False).eval()
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    return get_peft_model(base, settings)


def test_what_forward_keeps_is_what_autograd_saves() -> None:
    model = _model(torch.bfloat16)
    assert fuse(model).value == "fused"
    row = row_of(500, 400, 124)
    kept: dict[int, int] = {}

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        loss = loss_sum(model, row, packed=True)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    real = sum(size for place, size in kept.items() if place not in own)
    predicted = _saved(model_sizes(model), EQUAL, 1024, 512)
    assert loss.isfinite()
    # Beside the layers: LoRA's narrow products, cos and sin, the head's gradient.
    assert real == pytest.approx(predicted, rel=0.12)
    assert real > predicted


def test_adapter_and_optimizer_take_what_they_take() -> None:
    model = _model(torch.bfloat16)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.numel() > 1)
    sizes = model_sizes(model)
    parts = estimate_memory(sizes, EQUAL)
    assert parts.optimizer == moments
    held = sum(p.nbytes + p.grad.nbytes for p in trained)
    assert parts.trained == held + 2 * sizes.trained  # and a copy in bf16 for the row
    best = estimate_memory(sizes, replace(EQUAL, keeps_best=True))
    assert best.trained - parts.trained == sum(p.nbytes for p in trained)


def test_layouts_take_what_they_take(seven) -> None:
    linear = seven.sizes.linear
    sizes = {name: estimate_memory(seven.sizes, replace(EQUAL, layout=name)) for name in LAYOUTS}
    assert {name: parts.linear_layers // linear for name, parts in sizes.items()} == LAYOUTS
    for name, parts in sizes.items():
        assert (parts.mapped > 0) == (name == "int4")
        assert parts.needed == parts.total - parts.mapped
    once = estimate_memory(seven.sizes, replace(EQUAL, layout="int8", int8_copies=1))
    assert once.linear_layers == linear


LAYOUTS = {"as loaded": 2, "int8": 2, "prepacked": 4, "nf4": 0, "int4": 0}


def test_embeddings_that_the_data_does_not_name_are_not_read(seven) -> None:
    sizes = seven.sizes
    assert sizes.embeddings == 32000 * 4096
    whole = estimate_memory(sizes, EQUAL).base
    assert estimate_memory(sizes, replace(EQUAL, token_ids=8000)).base == whole - 2 * 24000 * 4096
    assert estimate_memory(sizes, replace(EQUAL, token_ids=40000)).base == whole


def test_the_largest_row_fits_and_the_next_does_not(seven) -> None:
    limit = 24 * GIB
    for checkpointing in (False, True):
        setting = replace(EQUAL, checkpointing=checkpointing)
        tokens = largest_row(seven.sizes, setting, limit)
        at = replace(setting, row_tokens=tokens, supervised=tokens // 2)
        more = replace(setting, row_tokens=tokens + 128, supervised=tokens // 2 + 64)
        assert (
            estimate_memory(seven.sizes, at).needed
            <= limit
            < estimate_memory(seven.sizes, more).needed
        )
    assert largest_row(seven.sizes, EQUAL, GIB) == 0


def test_checkpointing_and_shorter_rows_take_less(seven) -> None:
    found = [
        estimate_memory(
            seven.sizes, replace(EQUAL, row_tokens=n, supervised=n // 2, checkpointing=c)
        ).total
        for n, c in ((8192, False), (4096, False), (4096, True), (1024, True))
    ]
    assert found == sorted(found, reverse=True)


def test_activations_are_about_what_autograd_saves_with_checkpointing_too() -> None:
    """Within a factor of 1.5 of the tensors that autograd really saved, in bf16."""
    shape = SHAPE | {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 8}
    description = transformers.LlamaConfig(**shape)
    sizes = model_sizes(transformers.LlamaForCausalLM(description).requires_grad_(False))
    tokens = 512
    whole = saved_bytes(description, tokens, False)
    supervised = tokens // 2
    assert whole / 1.5 < _saved(sizes, EQUAL, tokens, supervised) < 1.5 * whole
    # What is kept to the end of forward, and the one layer that backward recomputes at a time.
    part = saved_bytes(description, tokens, True) + whole / 8
    assert part < whole / 3
    found = _saved(sizes, replace(EQUAL, checkpointing=True), tokens, supervised)
    assert part / 1.5 < found < 1.5 * part


@pytest.mark.parametrize("gib", [1.2, 2.0, 64.0])
def test_weights_are_laid_out_as_a_run_would(monkeypatch, gib) -> None:
    """The same decision as of a run, for a model of 0.24 GiB."""
    settings = config(
        SHAPES / "llama-2-7b",
        model={"dtype": "bfloat16"},
        data={"max_length": 128},
        train={"max_tokens_per_row": 128},
    )
    model = count_model(settings)
    shrunk = replace(model, sizes=replace(model.sizes, linear=2**27, parameters=2**27))
    setting = memory_setting(
        settings,
        shrunk,
        torch.bfloat16,
        [(128, 64)],
        ranks=1,
        available=gib * GIB,
        keeps_best=False,
        prepackable=True,
    )
    # What a run sees when it decides: the runtime and the loaded weights are gone from the memory.
    free = gib * GIB - RUNTIME - 2 * 2**27
    monkeypatch.setattr("intel_ft.host.cpu.available_bytes", lambda: free)
    monkeypatch.setattr("intel_ft.models.fast_path.can_prepack", lambda _: True)
    monkeypatch.setattr("intel_ft.models.fast_path.linear_bytes", lambda _: 2 * 2**27)
    monkeypatch.setattr("intel_ft.models.fast_path.convert_frozen_weights", lambda *_: None)
    monkeypatch.setattr("intel_ft.models.fast_path.fuse", lambda _: None)
    monkeypatch.setattr("intel_ft.models.fast_path.fuse_experts", lambda _: None)
    base = type("Base", (), {"dtype": torch.bfloat16})
    activations = full_row_activations(settings, shrunk.sizes, torch.bfloat16)
    decision = apply_fast_path(base, settings, activations)[0]
    assert (decision.value == "on") == (setting.layout == "prepacked")


def test_of_a_multimodal_model_the_text_model_is_counted() -> None:
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_local_experts": 2, "vocab_size": 99}
    counted = count_description(config(), transformers.Llama4Config(text_config=text))
    assert (counted.sizes.hidden, counted.sizes.layers, counted.sizes.vocabulary) == (64, 2, 99)


def test_experts_take_what_their_layout_takes() -> None:
    values = SHAPE | {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
    sizes = count_description(config(), transformers.Qwen3MoeConfig(**values)).sizes
    weights = sizes.layers * 8 * 3 * 32 * sizes.hidden
    assert sizes.expert_weights == weights and sizes.experts == weights // 4
    assert (sizes.mixtures, sizes.active_experts, sizes.expert_intermediate) == (
        sizes.layers,
        2,
        32,
    )
    (per_token,) = describe_mixture(sizes)
    assert (
        per_token.value
        == f"{sizes.parameters - 3 * weights // 4:,} of the base's {sizes.parameters:,}"
    )
    assert describe_mixture(replace(sizes, mixtures=0)) == []
    for layout, each in (("as loaded", 2), ("prepacked", 2), ("int8", 1), ("nf4", NF4_BYTES)):
        setting = MemorySetting(layout, 512, 256, uneven=False, checkpointing=False)
        estimate = estimate_memory(sizes, setting)
        assert estimate.experts == int(weights * each)
        assert estimate.experts + estimate.loading == pytest.approx(2 * weights, abs=2)
    # Activations follow the experts that a token meets, not all of them.
    more = replace(sizes, expert_weights=4 * weights)
    assert estimate_memory(more, setting).activations == estimate.activations
    # In bf16 and int8 the ranks 32 and 16 of an expert's A and B are both filled up to 32.
    assert sizes.expert_padding == sizes.layers * 8 * 16 * (32 + sizes.hidden)
    padded, nf4 = (estimate_memory(sizes, replace(setting, layout=x)) for x in ("int8", "nf4"))
    assert padded.trained - nf4.trained == 2 * sizes.expert_padding
    # Norms are fused on CPUs only; on a GPU they keep their input in float32.
    on_gpu, on_cpu = (_saved(sizes, replace(EQUAL, gpu=gpu), 512, 256) for gpu in (True, False))
    heads = (sizes.heads + sizes.kv_heads) * sizes.head_dim
    assert on_gpu - on_cpu == 2 * 512 * sizes.layers * (2 * sizes.hidden + heads)


def test_little_data_takes_more_memory_per_token() -> None:
    found = [data_bytes(tokens) / 2**20 for tokens in (0, 4_335, 941_893, 4_709_465, 160_000_000)]
    # What reading 30, 4,867, 24,335 and a million examples took, in MiB (docs/log.md).
    assert found == pytest.approx([0, 0, 72, 135, 510], rel=0.15, abs=2)


def test_pickled_weights_are_not_converted_while_they_are_read(tmp_path) -> None:
    write_json(tmp_path / "config.json", transformers.LlamaConfig(**SHAPE).to_dict())
    model = {"allow_pickle": True, "base_dtype": "int8"}
    settings = config(tmp_path, model={"name_or_path": str(tmp_path), **model})
    counted = count_model(settings)

    def streamed() -> bool:
        return memory_setting(
            settings,
            counted,
            torch.bfloat16,
            [(128, 64)],
            ranks=1,
            available=GIB,
            keeps_best=False,
            prepackable=True,
        ).streamed

    assert streamed()  # the shape alone: as published models are
    (tmp_path / "pytorch_model.bin").touch()
    assert not streamed()
    (tmp_path / "model.safetensors").touch()
    assert streamed()


# -- its use by a run


@pytest.mark.parametrize("processes", [1, 4])
def test_each_of_n_ranks_decides_on_its_share_of_the_memory(monkeypatch, processes) -> None:
    """Training, `bench` and `plan`'s probe all assemble a training here."""
    seen = []

    def choose_layout(config, **facts):
        seen.append(facts["available"])
        return real(config, **facts)

    real = apply_fast_path.__globals__["choose_layout"]
    monkeypatch.setitem(apply_fast_path.__globals__, "choose_layout", choose_layout)
    monkeypatch.setattr("intel_ft.host.cpu.available_bytes", lambda: 64 * GIB)
    tiny = workload("tiny")
    base = transformers.LlamaForCausalLM._from_config(
        transformers.LlamaConfig(**SHAPE), attn_implementation=packed_attention.NAME
    ).requires_grad_(False)
    world = World(rank=0, size=processes, local_rank=0, local_size=processes, launcher="mpirun")
    settings = config(data={"max_length": 1024}, backend={"share_base": "off"})
    backend = Backend(torch.float32, 1, ())
    assemble(settings, base, synthetic_examples(tiny, 0), backend, world)
    assert seen == [64 * GIB / processes]


def _warning(monkeypatch, caplog, settings, inputs, available: float) -> str | None:
    """What `require_memory` warned of with so many bytes for this process, or None."""
    monkeypatch.setattr(setup.cpu, "rss_gib", lambda: 0.5)
    monkeypatch.setattr(setup.cpu, "available_bytes", lambda: available - 0.5 * GIB)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=setup.logger.name):
        setup.require_memory(settings, inputs, Backend(torch.float32, 1, ()), World())
    return caplog.messages[0] if caplog.messages else None


def test_a_run_is_refused_only_where_it_cannot_fit(monkeypatch, caplog) -> None:
    settings = config(train={"max_steps": 2})
    inputs = setup.read_inputs(settings)
    assert _warning(monkeypatch, caplog, settings, inputs, 4 * GIB) is None
    low, high = 0.5 * GIB, 4 * GIB
    while high - low > 2**24:  # the least that is enough without a warning
        middle = (low + high) / 2
        try:
            enough = _warning(monkeypatch, caplog, settings, inputs, middle) is None
        except EnvironmentProblem:
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    assert 0.75 * GIB < high < 2 * GIB
    warning = _warning(monkeypatch, caplog, settings, inputs, 0.97 * high / OVERESTIMATE * 1.1)
    assert "train.max_tokens_per_row" in warning and "GiB available" in warning
    with pytest.raises(EnvironmentProblem, match=r"GiB available.*smaller model"):
        _warning(monkeypatch, caplog, settings, inputs, 0.97 * high / OVERESTIMATE)


def saved_bytes(config, tokens, checkpointing) -> int:
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=packed_attention.NAME
    )
    model = model.to(torch.bfloat16).requires_grad_(False)
    model = add_lora(model, MethodConfig(), "base", None).train()
    fuse(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    row = row_of(tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = loss_sum(model, row, packed=True)
    del total
    return sum(saved.values())
