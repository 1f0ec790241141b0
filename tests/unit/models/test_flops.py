"""What a step costs, against torch's own count of the operations that it ran."""

import numpy as np
import pytest
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.layers import packed_attention
from intel_ft.models import loss
from intel_ft.models.adapter import add_lora
from intel_ft.models.flops import StepCost, step_cost
from intel_ft.models.loss import loss_sum
from intel_ft.templates.examples import Examples

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SHAPE, num_key_value_heads=2),
    "llama-tied": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),  # calls its lm_head embed_out
    "gpt2": transformers.GPT2Config(  # its linear layers are Conv1D
        vocab_size=61, n_embd=32, n_layer=3, n_head=4
    ),
}

# Rotary embeddings are an outer product of positions and frequencies: torch counts it, we do not.
ROTARY = 1e-4


@pytest.fixture
def exact(monkeypatch):
    """No padding of segments to round lengths, which is not needed and not counted."""
    monkeypatch.setattr(packed_attention, "SEGMENT_MULTIPLE", 1)


def make_examples(lengths, prompt=2) -> Examples:
    offsets = np.cumsum([0, *lengths])
    supervised = np.concatenate([np.arange(length) >= prompt for length in lengths])
    return Examples(np.arange(offsets[-1], dtype=np.int32) % 61, supervised, offsets)


def make_model(name, *, pads_rows=False, **lora):
    """A base with peft's own LoRA, whose plain operations torch can count one by one."""
    base = AutoModelForCausalLM.from_config(
        CONFIGS[name], attn_implementation=packed_attention.NAME
    )
    base.requires_grad_(False).eval()
    if not pads_rows:
        base.row_multiple = 1
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))


def counted(model, row) -> float:
    """Operations of forward and backward that torch saw.

    Attention runs as plain products, which compute the full square, twice its causal half. The
    gradient goes on to the embeddings: else autograd saves the input gradient of the first layer's
    frozen projections, which the definition of MFU counts (2N backward a token).
    """
    model.enable_input_require_grads()
    loss.plain_head(model)  # its trial is once a model's, not a step's
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_sum(model, row, packed=True).backward()
    model.zero_grad()
    return float(counter.get_total_flops())


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_torch_counts_with_half_of_the_attention(name) -> None:
    model = make_model(name)
    cost = step_cost(model)
    row = build_row(make_examples([31, 7, 18]), np.arange(3))
    square = cost.attention * float((row.segment_lengths**2).sum())
    assert cost.flops(row) + square == pytest.approx(counted(model, row), rel=ROTARY)


@pytest.mark.usefixtures("exact")
def test_weights_that_train_take_a_third_product() -> None:
    model = make_model("llama").get_base_model()
    model.requires_grad_(True)
    row = build_row(make_examples([31, 7, 18]), np.arange(3))
    cost = step_cost(model)
    square = cost.attention * float((row.segment_lengths**2).sum())
    assert cost.flops(row) + square == pytest.approx(counted(model, row), rel=ROTARY)


@pytest.mark.usefixtures("exact")
def test_some_target_modules_count_only_their_own_lora() -> None:
    model = make_model("llama", target_modules=["v_proj"])
    row = build_row(make_examples([31, 7]), np.arange(2))
    cost = step_cost(model)
    full = step_cost(make_model("llama"))
    assert cost.linear < full.linear
    assert (cost.attention, cost.logits) == (full.attention, full.logits)
    square = cost.attention * float((row.segment_lengths**2).sum())
    assert cost.flops(row) + square == pytest.approx(counted(model, row), rel=ROTARY)


def test_what_is_recomputed_or_filled_up_is_not_needed() -> None:
    model = make_model("llama", pads_rows=True)
    row = build_row(make_examples([31, 7]), np.arange(2))
    needed = step_cost(model).flops(row)
    once = counted(model, row)
    assert once > 2 * needed  # 38 tokens in a row of 128
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert counted(model, row) > 1.15 * once
    assert step_cost(model).flops(row) == needed


def test_each_term_counts_its_own_unit() -> None:
    cost = StepCost(linear=1.0, attention=100.0, logits=10_000.0)
    row = build_row(make_examples([5, 3]), np.arange(2))  # 8 tokens, 25 + 9, 3 + 1 supervised
    assert cost.flops(row) == 8 + 3_400 + 40_000
    assert cost.quadratic_cost == 100.0


def test_packing_adds_no_operations() -> None:
    cost = step_cost(make_model("llama"))
    examples = make_examples([31, 7, 18])
    alone = [cost.flops(build_row(examples, np.array([index]))) for index in range(3)]
    assert cost.flops(build_row(examples, np.arange(3))) == pytest.approx(sum(alone))


def test_the_terms_of_a_llama_by_hand() -> None:
    base = AutoModelForCausalLM.from_config(CONFIGS["llama"]).requires_grad_(False)
    cost = step_cost(add_lora(base, MethodConfig(r=4, alpha=8), "base", None))
    projections = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48
    lora = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert cost.linear == 3 * (4 * projections + 6 * lora)
    assert cost.attention == 3 * 6 * 32
    assert cost.logits == 4 * 32 * 61
