"""The fast step is exact: it gives the loss and LoRA gradients of plain Transformers and peft.

The fast step packs rows, fuses layers and computes the loss in chunks; the plain one takes one
example at a time.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from support.packed_rows import one_thread
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.kernels import ops
from intel_ft.layers.fused_decoder import is_fused
from intel_ft.models import loss as loss_module
from intel_ft.models.adapter import add_lora, fuse
from intel_ft.models.load import load_base, load_for_packing
from intel_ft.models.loss import loss_sum
from intel_ft.templates.examples import Examples

__all__ = ["one_thread"]  # a fixture

LENGTHS = (5, 200, 33, 64, 17, 150, 65, 100)
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,  # about 1 / sqrt(hidden_size): activations keep their size
}


@dataclass(frozen=True)
class Step:
    """Loss and LoRA gradients by name."""

    loss: float
    gradients: dict[str, torch.Tensor]

    @property
    def flat(self) -> torch.Tensor:
        return torch.cat([g.flatten() for g in self.gradients.values()]).double()

    def error(self, truth: "Step") -> float:
        """Of all gradients as one vector, relative."""
        return ((self.flat - truth.flat).norm() / truth.flat.norm()).item()


def make_examples(vocabulary: int) -> Examples:
    random = np.random.default_rng(0)
    offsets = np.cumsum([0, *LENGTHS])
    supervised = random.random(offsets[-1]) < 0.7
    supervised[offsets[:-1]] = False
    supervised[offsets[1:] - 1] = True
    tokens = random.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    return Examples(tokens, supervised, offsets)


def save_base(folder, vocabulary: int, kind: str) -> ModelConfig:
    """A random base, its weights rounded to bf16 so that it is the same in both dtypes."""
    torch.manual_seed(0)
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, head_dim=32, **SHAPE))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.bfloat16().save_pretrained(folder)
    return ModelConfig(name_or_path=str(folder))


def randomize(model) -> None:
    """B, too: while it is zero, so are the gradients of A."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=generator)
                assert "lora_" in name


def finished(model, total: float) -> Step:
    return Step(total, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})


def fast(settings, method, dtype, examples, rows) -> Step:
    base, reason = load_for_packing(settings, dtype)
    assert reason is None
    model = add_lora(base, method, "base", None)
    fuse(model)
    assert is_fused(model)
    randomize(model)
    total = 0.0
    for indices in rows:
        loss = loss_sum(model, build_row(examples, np.array(indices)), packed=True)
        loss.backward()
        total += loss.item()
    return finished(model, total)


def plain(settings, method, dtype, examples) -> Step:
    """As a plain training loop has it: peft's layers, sdpa, autocast in bf16, whole logits."""
    base = load_base(settings, dtype, "sdpa").requires_grad_(False)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.alpha,
        target_modules=method.target_modules,
    )
    model = get_peft_model(base, config)
    randomize(model)
    total = 0.0
    for index in range(len(examples)):
        tokens, supervised = map(torch.from_numpy, examples[index])
        tokens = tokens.long()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        targets = tokens[1:].masked_fill(~supervised[1:], -100)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        loss.backward()
        total += loss.item()
    return finished(model, total)


ALL = [range(len(LENGTHS))]
SEVERAL = [[0, 1, 2], [3], [4, 5, 6, 7]]
METHOD = MethodConfig(r=8, alpha=16)


@pytest.fixture
def chunks(monkeypatch) -> list[int]:
    """Chunks of 128 rows, and how many rows each had."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    seen = []
    cross_entropy = ops.cross_entropy
    monkeypatch.setattr(
        loss_module.ops,
        "cross_entropy",
        lambda logits, targets: seen.append(len(targets)) or cross_entropy(logits, targets),
    )
    return seen


@pytest.mark.parametrize("rows", [ALL, SEVERAL], ids=["one row", "rows"])
@pytest.mark.parametrize(("kind", "vocabulary"), [("llama", 97), ("qwen3", 1031), ("llama", 4999)])
def test_float32_to_rounding(tmp_path, chunks, kind, vocabulary, rows) -> None:
    settings = save_base(tmp_path, vocabulary, kind)
    examples = make_examples(vocabulary)
    ours = fast(settings, METHOD, torch.float32, examples, rows)
    assert len(chunks) > len(rows)
    theirs = plain(settings, METHOD, torch.float32, examples)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.error(theirs) <= 1e-5
    whole = theirs.flat.norm()
    assert set(ours.gradients) == set(theirs.gradients)
    for name, gradient in ours.gradients.items():
        wanted = theirs.gradients[name]
        assert wanted.norm() > 0
        assert (gradient - wanted).norm() <= 1e-5 * (wanted.norm() + 0.1 * whole), name


@pytest.mark.parametrize(("kind", "vocabulary"), [("llama", 97), ("qwen3", 1031), ("llama", 4999)])
def test_bf16_is_as_near_to_the_truth_as_plain_bf16(tmp_path, chunks, kind, vocabulary) -> None:
    settings = save_base(tmp_path, vocabulary, kind)
    examples = make_examples(vocabulary)
    ours = fast(settings, METHOD, torch.bfloat16, examples, ALL)
    assert len(chunks) > 1
    theirs = plain(settings, METHOD, torch.bfloat16, examples)
    truth = plain(settings, METHOD, torch.float32, examples)
    assert truth.gradients.keys() == ours.gradients.keys()
    # Random weights cost either of them about 2e-2, more than the 1e-2 that would tell them apart.
    assert ours.loss == pytest.approx(truth.loss, rel=5e-3)
    assert ours.error(truth) <= 1.2 * theirs.error(truth)
    assert ours.error(theirs) <= 1.2 * (2**0.5) * theirs.error(truth)
