"""A run on a mixture of experts: load, auxiliary loss, and the check of the adapter's effect."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from support.families import architectures
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from intel_ft.assets import resolve
from intel_ft.batching.row import build_row
from intel_ft.config import build
from intel_ft.config_method import MethodConfig
from intel_ft.errors import UserError
from intel_ft.layers import packed_attention
from intel_ft.layers.fused_experts import fuse_experts
from intel_ft.models.adapter import add_lora
from intel_ft.models.loss import loss_sum
from intel_ft.models.routing import watch
from intel_ft.report.page import report
from intel_ft.templates.examples import Examples
from intel_ft.training.expert_load import entropy, load_metrics
from intel_ft.training.model_sizes import count_model
from intel_ft.training.run import train
from intel_ft.training.run_record import read_training

LENGTHS = (9, 14)


def mixture(name: str, **settings):
    model_type, values = architectures.FAMILIES[name]
    torch.manual_seed(0)
    values = values | {"initializer_range": 0.2} | settings
    config = AutoConfig.for_model(model_type, **values)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=packed_attention.NAME, dtype=torch.float32
    )
    model = add_lora(model.requires_grad_(False), MethodConfig(r=2), "base", None).train()
    fuse_experts(model)
    return model


def row(*which: int):
    tokens = np.random.default_rng(0).integers(3, 4000, sum(LENGTHS)).astype(np.int32)
    offsets = np.array([0, *np.cumsum(LENGTHS)])
    supervised = ~np.isin(np.arange(len(tokens)), offsets)
    examples = Examples(tokens, supervised, offsets)
    return build_row(examples, np.array(which))


@pytest.mark.parametrize("name", ["Qwen 3 MoE", "gpt-oss", "DeepSeek V3", "Granite 3 MoE"])
def test_the_load_counts_each_token_once_per_expert_and_no_padding(name) -> None:
    model = mixture(name)
    routing, _ = watch(model, "auto")
    with routing.watching(len(row(0, 1).tokens)):
        loss_sum(model, row(0, 1), packed=True).backward()
    with torch.no_grad(), routing.watching(5):
        loss_sum(model, row(0), packed=True)  # a teacher's forward, or validation
    counts = routing.take_counts()
    per_token = model.config.num_experts_per_tok
    assert counts.sum(1).tolist() == [per_token * sum(LENGTHS)] * len(routing.layers)
    assert counts.max() <= sum(LENGTHS)
    assert routing.take_counts().sum() == 0


@pytest.mark.parametrize("name", ["Qwen 3 MoE", "gpt-oss", "Mixtral", "OLMoE"])
def test_the_auxiliary_loss_is_that_of_transformers(name) -> None:
    model = mixture(name, router_aux_loss_coef=0.3)
    routing, [decision] = watch(model, True)
    assert decision.value == "on, coefficient 0.3"
    tokens = torch.from_numpy(row(1).tokens).long()[None]
    model.set_attn_implementation("eager")
    plain = model(input_ids=tokens, output_router_logits=True, use_cache=False)
    model.set_attn_implementation(packed_attention.NAME)
    expected = 0.3 * plain.aux_loss
    with routing.watching(tokens.shape[1]):
        loss_sum(model, row(1), packed=True)
    found = routing.auxiliary_loss(tokens.shape[1])
    torch.testing.assert_close(found, expected)


def test_the_auxiliary_loss_follows_the_models_config_and_the_switch() -> None:
    assert watch(mixture("Qwen 3 MoE"), "auto")[1][0].value == "off"
    says = mixture("Qwen 3 MoE", output_router_logits=True)
    assert watch(says, "auto")[1][0].value == "on, coefficient 0.001"
    assert watch(says, False)[1][0].reason == "set in the config"
    with pytest.raises(UserError, match=r"router_aux_loss=true: .* no router_aux_loss_coef"):
        watch(mixture("DeepSeek V3"), True)


def test_entropy_and_metrics() -> None:
    counts = torch.tensor([[4, 4, 4, 4], [8, 8, 0, 0], [16, 0, 0, 0]])
    assert entropy(counts).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert load_metrics(counts) == pytest.approx(
        {
            "expert_entropy": 0.5,
            "expert_entropy_min": 0.0,
            "expert_load_max": 4.0,
            "experts_unused": 5,
        }
    )


@pytest.fixture
def configure(tmp_path):
    folder = tmp_path / "base"
    AutoTokenizer.from_pretrained(resolve("tiny-python-llama")).save_pretrained(folder)
    model_type, values = architectures.FAMILIES["Qwen 3 MoE"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values | {"initializer_range": 0.2})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    rows = [{"prompt": f"word {i}", "completion": f"{i} {i}"} for i in range(8)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in rows))

    def configure(method: dict, **settings):
        return build(
            {
                "model": {"name_or_path": str(folder), "dtype": "float32"},
                "data": {
                    "train": str(data),
                    "eval": str(data),
                    "template": "alpaca",
                    "max_length": 128,
                },
                "method": {"r": 4, "alpha": 16} | method,
                "train": {
                    "max_steps": 4,
                    "global_batch_size": 8,
                    "learning_rate": 0.02,
                    "scheduler": "constant",
                    "max_tokens_per_row": 256,
                    "report_to": [],
                    "eval_steps": 2,
                    **settings,
                },
                "backend": {"threads": 1},
                "output": {"directory": str(tmp_path / "run")},
            },
            "test",
        )

    return configure


def test_a_model_learns_through_its_experts_alone(configure) -> None:
    config = configure({"target_modules": ["gate_up_proj", "down_proj"]}, router_aux_loss=True)
    summary = train(config)
    assert summary.without_effect == []
    run = config.output.directory
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0] - 0.05
    steps = [line for line in lines if "loss" in line]
    assert all(0 < line["expert_entropy"] <= 1 and line["router_aux_loss"] > 0 for line in steps)
    load = json.loads((run / "expert_load.json").read_text())
    tokens = sum(line["tokens"] for line in steps)
    assert [sum(layer) for layer in load["tokens"]] == [2 * tokens] * 2
    assert load["layers"] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    unused = sum(layer.count(0) for layer in load["tokens"])
    experts = sum(map(len, load["tokens"]))
    assert read_training(run)["experts_without_tokens"] == [unused, experts]
    page = report([run])
    assert "<h2>Experts</h2>" in page and "model.layers.1.mlp" in page
    assert "entropy of the experts" in page


def test_the_auxiliary_loss_of_a_stream_is_that_of_its_own_rows(configure) -> None:
    config = configure({}, router_aux_loss=True, max_steps=2, learning_rate=1e-12)
    data = config.data.model_copy(update={"streaming": True, "buffer": 8, "eval": None})
    rows = [{"prompt": f"word {i}", "completion": " x" * (60 * (i > 7) + 1)} for i in range(16)]
    Path(data.sources[0].path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(config.model_copy(update={"data": data}))
    text = (config.output.directory / "metrics.jsonl").read_text()
    short, long = (json.loads(line) for line in text.splitlines())
    assert long["tokens"] > 2 * short["tokens"]
    assert long["router_aux_loss"] == pytest.approx(short["router_aux_loss"], rel=0.3)


def test_an_adapter_without_effect_is_named_at_the_end_of_the_run(configure, caplog) -> None:
    config = configure({"target_modules": "attention-only"}, learning_rate=1e-12, max_steps=1)
    with caplog.at_level(logging.WARNING):
        summary = train(config.model_copy(update={"train": _still(config)}))
    assert "self_attn.q_proj (2 of 2 modules)" in summary.without_effect
    assert "the adapter has no effect on self_attn.q_proj (2 of 2 modules)" in caplog.text


def _still(config):
    """No update at all: a warm-up's first step has a learning rate of 0."""
    return config.train.model_copy(
        update={"scheduler": "constant_with_warmup", "warmup_ratio": 1.0}
    )


@pytest.mark.parametrize(
    ("section", "key", "value"), [("model", "base_dtype", "int4"), ("backend", "shard", True)]
)
def test_what_a_mixture_does_not_support_is_refused_before_anything_is_made(
    section, key, value, tmp_path
) -> None:
    model_type, values = architectures.FAMILIES["Mixtral"]
    AutoConfig.for_model(model_type, **values).save_pretrained(tmp_path)
    values = {
        "model": {"name_or_path": str(tmp_path)},
        "data": {"train": "unused.jsonl"},
        "output": {"directory": str(tmp_path / "run")},
    }
    values.setdefault(section, {})[key] = value
    with pytest.raises(UserError, match=f"{section}.{key}.* does not support mixtures of experts"):
        count_model(build(values, "config"))
