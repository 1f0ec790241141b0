"""Base models of many architectures: loaded, packed or honestly not, adapted, or refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.layers import packed_attention
from intel_ft.layers.lora_linear import Dense
from intel_ft.models.adapter import adapter_weights, add_lora, fuse, load_weights, restore_weights
from intel_ft.models.load import (
    check_folder,
    load_base,
    load_for_packing,
    load_tokenizer,
    model_folder,
    parameter_count,
    refuse_both_ways,
)
from intel_ft.models.loss import loss_sum, plain_head
from intel_ft.templates.examples import Examples

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIGS = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama-bias": transformers.LlamaConfig(**GROUPED, attention_bias=True, head_dim=12),
    # A window shorter than the segments below.
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "qwen2-window": transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=8),
    # No rotary positions in the fourth layer.
    "smollm3": transformers.SmolLM3Config(**GROUPED | {"num_hidden_layers": 4}),
    "gemma": transformers.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": transformers.Gemma2Config(
        **GROUPED,
        head_dim=8,
        sliding_window=4,
        attn_logit_softcapping=0.5,  # low enough to matter
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=16,
    ),
    # A scale of its own, and no softcap in its way.
    "gemma2-scale": transformers.Gemma2Config(
        **GROUPED, head_dim=8, attn_logit_softcapping=None, query_pre_attn_scalar=64
    ),
    "gpt-oss": transformers.GptOssConfig(  # attention sinks and a window
        **GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4
    ),
    "phi": transformers.PhiConfig(**SHAPE),
    "phi3": transformers.Phi3Config(**GROUPED),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "gpt2": transformers.GPT2Config(
        vocab_size=61,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        **NO_DROPOUT,
    ),
}
UNPACKABLE = {
    "bloom": transformers.BloomConfig(
        vocab_size=61, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.15
    ),
    "falcon": transformers.FalconConfig(**SHAPE),
    "falcon-alibi": transformers.FalconConfig(**SHAPE, alibi=True),
    # Logits capped, low enough to matter, under names of their own.
    "recurrent-gemma": transformers.RecurrentGemmaConfig(
        **SHAPE | {"num_hidden_layers": 3},  # the third has attention
        num_key_value_heads=1,
        lru_width=32,
        head_dim=8,
        logits_soft_cap=1.0,
    ),
    "xlstm": transformers.xLSTMConfig(
        vocab_size=61,
        hidden_size=64,
        num_hidden_layers=1,
        num_heads=4,
        output_logit_soft_cap=1.0,
        use_cache=False,
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """So small models are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_model(config, folder: Path) -> ModelConfig:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases: neither one nor zero
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return ModelConfig(name_or_path=str(folder))


@pytest.fixture
def llama(tmp_path) -> ModelConfig:
    return save_model(CONFIGS["llama"], tmp_path / "llama")


def make_examples(*lengths: int) -> Examples:
    offsets = np.cumsum([0, *lengths])
    random = np.random.default_rng(0)
    supervised = random.random(offsets[-1]) < 0.6
    supervised[offsets[:-1]] = False
    supervised[offsets[1:] - 1] = True
    tokens = random.integers(3, 61, offsets[-1]).astype(np.int32)
    return Examples(tokens, supervised, offsets)


EXAMPLES = make_examples(9, 2, 14, 5)


def packed_logits(model, row) -> torch.Tensor:
    arrays = (torch.from_numpy(a) for a in (row.tokens, row.positions, row.bounds))
    return model(**packed_attention.row_inputs(*arrays)).logits[0]


def reference_loss(model, examples: Examples) -> torch.Tensor:
    """Plain Transformers, an example at a time."""
    total = torch.zeros(())
    for index in range(len(examples)):
        tokens, supervised = map(torch.from_numpy, examples[index])
        logits = model(input_ids=tokens.long()[None]).logits[0, :-1]
        total += F.cross_entropy(
            logits[supervised[1:]], tokens[1:][supervised[1:]].long(), reduction="sum"
        )
    return total


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_packed_logits_equal_each_segment_alone_in_eager_attention(name, tmp_path) -> None:
    settings = save_model(CONFIGS[name], tmp_path)
    model, reason = load_for_packing(settings, torch.float32)
    assert reason is None
    row = build_row(EXAMPLES, np.arange(4))
    found = packed_logits(model, row)
    eager = load_base(settings, torch.float32, "eager")
    alone = torch.cat(
        [eager(input_ids=torch.from_numpy(EXAMPLES[i][0]).long()[None]).logits[0] for i in range(4)]
    )
    assert alone.std() > 0.1  # weights large enough for a difference to show
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_trains_packed(name, tmp_path) -> None:
    settings = save_model(CONFIGS[name], tmp_path)
    base, _ = load_for_packing(settings, torch.float32)
    frozen = {n: p.clone() for n, p in base.named_parameters()}
    model = add_lora(base, MethodConfig(r=4, alpha=8), "its/name", None)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.dtype == torch.float32 for p in trained)
    row = build_row(EXAMPLES, np.arange(4))
    optimizer = torch.optim.Adam(trained, lr=0.02)
    losses = []
    for _ in range(4):
        loss = loss_sum(model, row, packed=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    expected = reference_loss(load_base(settings, torch.float32, "eager"), EXAMPLES).item()
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0] * 0.98
    parameters = model.get_base_model().named_parameters()
    now = {n.replace(".base_layer", ""): p for n, p in parameters}
    for n, p in frozen.items():
        assert torch.equal(now[n], p)


@pytest.mark.parametrize("name", UNPACKABLE)
def test_what_cannot_be_packed_says_why_and_trains_one_example_a_row(name, tmp_path) -> None:
    settings = save_model(UNPACKABLE[name], tmp_path)
    base, reason = load_for_packing(settings, torch.float32)
    assert reason
    assert "\n" not in reason
    model = add_lora(base, MethodConfig(r=4, alpha=8), "base", None)
    rows = [build_row(EXAMPLES, np.array([index])) for index in range(4)]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(3):
        total = torch.zeros(())
        for row in rows:
            loss = loss_sum(model, row, packed=False)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    # Not eager for all: Transformers' Falcon scales ALiBi differently in eager and sdpa.
    plain = AutoModelForCausalLM.from_pretrained(settings.name_or_path, dtype=torch.float32)
    assert losses[0] == pytest.approx(reference_loss(plain, EXAMPLES).item(), rel=1e-5)
    assert losses[-1] < losses[0] * 0.98


@pytest.mark.parametrize("change", [lambda x: 5 * torch.tanh(x / 5), lambda x: x / 4])
def test_logits_changed_behind_the_head_are_found_out_whatever_their_name(llama, change) -> None:
    model = load_base(llama, torch.float32)
    row = build_row(EXAMPLES, np.array([2]))
    assert plain_head(model) is model.lm_head.weight
    own = type(model).forward

    class Changed(type(model)):
        def forward(self, *arguments, **options):
            out = own(self, *arguments, **options)
            out.logits = change(out.logits)
            return out

    plain = loss_sum(model, row, packed=False)
    model = load_base(llama, torch.float32)
    model.__class__ = Changed
    assert plain_head(model) is None
    assert "forward" not in vars(model.get_decoder())
    expected = reference_loss(model, EXAMPLES.select(np.array([2])))
    assert loss_sum(model, row, packed=False).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() != pytest.approx(plain.item(), rel=1e-3)


def test_the_models_own_attention_dropout_is_kept_in_packed_rows(tmp_path) -> None:
    config = transformers.LlamaConfig(**GROUPED, attention_dropout=0.5)
    base, reason = load_for_packing(save_model(config, tmp_path), torch.float32)
    assert reason is None
    model = add_lora(base, MethodConfig(r=4, alpha=8), "base", None)
    assert fuse(model).value.startswith("not fused")
    row = build_row(EXAMPLES, np.arange(4))
    losses = []
    for training in (False, False, True, True):
        model.train(training)
        losses.append(loss_sum(model, row, packed=True).item())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_a_model_that_is_not_packed_refuses_a_row_of_several(llama) -> None:
    model = load_base(llama, torch.float32)
    with pytest.raises(ValueError, match="one example per row"):
        loss_sum(model, build_row(EXAMPLES, np.arange(2)), packed=False)


def test_a_bf16_base_multiplies_in_bf16_and_keeps_lora_in_float32(llama, monkeypatch) -> None:
    base, reason = load_for_packing(llama, torch.bfloat16)
    assert reason is None
    model = add_lora(base, MethodConfig(r=4, alpha=8), "base", None)
    fuse(model)
    seen = []
    linear = Dense.linear

    def watched(self, x, residual):
        out = linear(self, x, residual)
        seen.extend([x.dtype, out.dtype])
        return out

    monkeypatch.setattr(Dense, "linear", watched)
    loss = loss_sum(model, build_row(EXAMPLES, np.arange(4)), packed=True)
    loss.backward()
    assert loss.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    expected = reference_loss(load_base(llama, torch.float32, "eager"), EXAMPLES).item()
    assert loss.item() == pytest.approx(expected, rel=0.02)


# -- why_not_packable ----------------------------------------------------------------------------


def leaking(module, query, key, value, attention_mask, *, scaling=None, **_):
    """Causal over the whole row: what a model does that ignores the bounds."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return out.transpose(1, 2), None


def displaced(module, query, key, value, attention_mask, *, cu_seq_lens_q=None, **kwargs):
    """Right inside a segment, but every other one is turned around."""
    query = query.clone()
    for start, end in cu_seq_lens_q.view(-1).unfold(0, 2, 1)[1::2].tolist():
        query[:, :, start:end] *= -1
    return packed_attention.packed_attention(
        module, query, key, value, attention_mask, cu_seq_lens_q=cu_seq_lens_q, **kwargs
    )


@pytest.mark.parametrize(
    ("attention", "expected"),
    [(leaking, "another segment's tokens"), (displaced, "its position in the row")],
)
def test_attention_that_is_not_exact_is_refused(llama, monkeypatch, attention, expected) -> None:
    functions = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    known = functions[packed_attention.NAME]
    functions.register(packed_attention.NAME, attention)
    try:
        model, reason = load_for_packing(llama, torch.float32)
    finally:
        functions.register(packed_attention.NAME, known)
    assert expected in reason
    assert model.config._attn_implementation == "sdpa"
    row = build_row(EXAMPLES, np.array([2]))
    expected_loss = reference_loss(
        load_base(llama, torch.float32, "eager"), EXAMPLES.select(np.array([2]))
    )
    assert loss_sum(model, row, packed=False).item() == pytest.approx(
        expected_loss.item(), rel=1e-5
    )


def test_a_model_that_keeps_the_bounds_to_itself_is_refused(llama, monkeypatch) -> None:
    known = packed_attention.packed_attention
    functions = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS

    def without_bounds(*args, cu_seq_lens_q=None, **kwargs):
        return known(*args, **kwargs)

    functions.register(packed_attention.NAME, without_bounds)
    try:
        _, reason = load_for_packing(llama, torch.float32)
    finally:
        functions.register(packed_attention.NAME, known)
    assert "needs cu_seq_lens_q" in reason


def test_attention_chunks_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.config.attention_chunk_size = 4
    assert (
        packed_attention.why_not_packable(model)
        == "its attention is chunked (attention_chunk_size)"
    )


# -- the adapter -----------------------------------------------------------------------------------


def test_a_wrong_target_module_is_an_error_that_lists_the_right_ones(llama) -> None:
    base, _ = load_for_packing(llama, torch.float32)
    with pytest.raises(UserError) as caught:
        add_lora(base, MethodConfig(target_modules=["query"]), "base", None)
    line = str(caught.value)
    assert line.startswith("method.target_modules: ")
    assert line.endswith("down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("gpt2", "c_attn, c_fc, c_proj"),
        ("gpt-neox", "dense, dense_4h_to_h, dense_h_to_4h, query_key_value"),
    ],
)
def test_linear_layers_are_listed_whatever_their_class(name, layers, tmp_path) -> None:
    base, _ = load_for_packing(save_model(CONFIGS[name], tmp_path), torch.float32)
    with pytest.raises(UserError, match=f"linear layers are {layers}$"):
        add_lora(base, MethodConfig(target_modules=["query"]), "base", None)


def test_the_adapter_carries_the_bases_own_name(llama) -> None:
    base, _ = load_for_packing(llama, torch.float32)
    model = add_lora(base, MethodConfig(), "org/base", "main")
    assert model.peft_config["default"].base_model_name_or_path == "org/base"
    assert model.peft_config["default"].revision == "main"


@pytest.mark.parametrize(
    "method",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init": "gaussian"},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
)
def test_every_lora_option_gives_a_model_that_trains(llama, method) -> None:
    base, _ = load_for_packing(llama, torch.float32)
    model = add_lora(base, MethodConfig(r=4, alpha=8, **method), "base", None)
    fuse(model)
    loss_sum(model, build_row(EXAMPLES, np.arange(4)), packed=True).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in grads.values())
    assert any(grad.norm() > 0 for grad in grads.values())
    assert any("magnitude" in n for n in grads) == ("use_dora" in method)
    assert all("q_proj" in n or "v_proj" in n for n in grads) == ("target_modules" in method)


def test_adapter_weights_are_a_copy_that_can_be_put_back(llama, tmp_path) -> None:
    base, _ = load_for_packing(llama, torch.float32)
    model = add_lora(base, MethodConfig(r=4), "base", None)
    known = adapter_weights(model)
    assert set(known) == {n for n, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        for name in known:
            model.get_parameter(name).add_(1.0)
    changed = adapter_weights(model)
    assert not any(torch.equal(changed[name], known[name]) for name in known)
    restore_weights(model, known)
    assert all(torch.equal(model.get_parameter(name), known[name]) for name in known)
    restore_weights(model, changed)
    load_weights(model, tmp_path / "saved")
    assert all(torch.equal(model.get_parameter(name), known[name]) for name in known)


# -- what load.py refuses --------------------------------------------------------------------------


def refused(model: ModelConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_base(model, torch.float32)
    line = str(caught.value)
    assert "\n" not in line
    return line


def edit_config(model: ModelConfig, **changes) -> None:
    path = Path(model.name_or_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_good_folder_loads_frozen_in_eval_mode(llama) -> None:
    model = load_base(llama, torch.bfloat16)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert parameter_count(Path(llama.name_or_path)) == sum(p.numel() for p in model.parameters())


def test_a_missing_folder_and_a_file_are_told_apart(llama, tmp_path) -> None:
    missing = tmp_path / "none"
    line = refused(ModelConfig(name_or_path=str(missing)))
    assert line == f"{missing}: no such model folder"
    file = Path(llama.name_or_path) / "config.json"
    assert refused(ModelConfig(name_or_path=str(file))).startswith(f"{file} is a file: ")


def test_a_folder_without_a_config_is_refused(llama) -> None:
    (Path(llama.name_or_path) / "config.json").unlink()
    assert "no config.json" in refused(llama)


@pytest.mark.parametrize("text", ["{", "[]", '"llama"', "{\xe9"])
def test_a_broken_config_is_refused(llama, text) -> None:
    (Path(llama.name_or_path) / "config.json").write_bytes(text.encode("latin-1"))
    line = refused(llama)
    assert "config.json: " in line
    assert "JSON" in line


def test_a_folder_without_weights_is_refused(llama) -> None:
    (Path(llama.name_or_path) / "model.safetensors").unlink()
    assert refused(llama).endswith("no weights (*.safetensors) in this model folder")


def test_pickle_weights_are_refused_unless_allowed(llama) -> None:
    folder = Path(llama.name_or_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    line = refused(llama)
    assert "pytorch_model.bin: loading pickle weights can run code" in line
    assert "model.allow_pickle=true" in line
    allowed = load_base(llama.model_copy(update={"allow_pickle": True}), torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(allowed.get_parameter(name), weights[name])


def test_safetensors_are_taken_where_a_pickle_lies_beside_them(llama) -> None:
    folder = Path(llama.name_or_path)
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle at all")
    load_base(llama, torch.float32)
    load_base(llama.model_copy(update={"allow_pickle": True}), torch.float32)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_safetensors_are_refused(llama, keep) -> None:
    path = Path(llama.name_or_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    line = refused(llama)
    assert line.startswith(f"{path}: ")
    assert "copy it again" in line


@pytest.mark.parametrize(
    "content", [b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{!", b'\x09\0\0\0\0\0\0\0{"a": 12}']
)
def test_a_header_that_makes_no_sense_is_refused(llama, content) -> None:
    path = Path(llama.name_or_path) / "model.safetensors"
    path.write_bytes(content)
    assert refused(llama).startswith(f"{path}: damaged or not a safetensors file")


def test_missing_tensors_are_refused(llama) -> None:
    path = Path(llama.name_or_path) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    assert "not in its files, such as model.layers.1.mlp.up_proj.weight" in refused(llama)


def test_tensors_that_do_not_belong_to_the_model_are_named(llama, caplog) -> None:
    path = Path(llama.name_or_path) / "model.safetensors"
    bias = "model.layers.1.self_attn.q_proj.bias"
    save_file(load_file(path) | {bias: torch.ones(32)}, path, {"format": "pt"})
    load_base(llama, torch.float32)
    assert f"not used, because the model has no place for it: 1 tensor, such as {bias}" in (
        caplog.text
    )


def test_a_pointer_of_git_lfs_is_named(llama) -> None:
    path = Path(llama.name_or_path) / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refused(llama).startswith(f"{path}: this is a Git LFS pointer")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (transformers.BertConfig(), "is_decoder"),
        (transformers.XLMConfig(), "causal"),
        (transformers.Gemma3TextConfig(use_bidirectional_attention=True), "use_bidirectional"),
        (transformers.XLNetConfig(), "attn_type"),
    ],
)
def test_a_model_that_reads_in_both_directions_is_refused(settings, key) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {key}.*both directions"):
        refuse_both_ways(Path("bert"), settings)


def test_models_that_generate_are_not_refused() -> None:
    """A key of the file that the model does not have is ignored."""
    for settings in (
        transformers.BertConfig(is_decoder=True),
        transformers.LlamaConfig(is_decoder=False),
        transformers.GPTNeoXConfig(),
        transformers.BartConfig(),
        *CONFIGS.values(),
    ):
        refuse_both_ways(Path("model"), settings)


def test_weights_of_another_shape_are_refused(llama) -> None:
    edit_config(llama, intermediate_size=96)
    assert "shapes of its weights do not match its config.json" in refused(llama)


def test_a_shard_that_is_not_there_is_refused(tmp_path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    settings = ModelConfig(name_or_path=str(tmp_path))
    load_base(settings, torch.float32)
    shards[0].unlink()
    assert refused(settings).startswith(f"{tmp_path}: ")


def test_remote_code_is_refused_unless_allowed(llama, tmp_path) -> None:
    folder = Path(llama.name_or_path)
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    edit_config(
        llama,
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    line = refused(llama)
    assert "needs custom code from this folder (model_type own)" in line
    assert "model.trust_remote_code=true" in line
    with pytest.raises(UserError, match="needs custom code"):
        load_for_packing(llama, torch.float32)
    assert not ran.exists()
    trusted = llama.model_copy(update={"trust_remote_code": True})
    assert type(load_base(trusted, torch.float32)).__name__ == "OwnModel"
    assert ran.exists()


def test_a_known_architecture_with_code_beside_it_runs_ours(llama, tmp_path) -> None:
    folder = Path(llama.name_or_path)
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    edit_config(llama, auto_map={"AutoConfig": "own.OwnConfig"})
    assert type(load_base(llama, torch.float32)).__name__ == "LlamaForCausalLM"
    assert not ran.exists()


@pytest.mark.parametrize("model_type", ["nonsense", "t5", "clip", None])
def test_what_is_no_causal_language_model_is_refused(llama, model_type) -> None:
    edit_config(llama, model_type=model_type)
    assert f"model_type {model_type!r} is not a causal language model" in refused(llama)


def test_a_folder_without_a_tokenizer_is_refused(llama) -> None:
    check_folder(model_folder(llama), llama)
    with pytest.raises(UserError, match="no tokenizer") as caught:
        load_tokenizer(llama)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_eos_is_refused(llama) -> None:
    assets = Path(model_folder(ModelConfig(name_or_path="tiny-python-llama")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(assets / name, llama.name_or_path)
    assert load_tokenizer(llama).eos_token_id is not None
    path = Path(llama.name_or_path) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    with pytest.raises(UserError, match="the tokenizer has no eos token"):
        load_tokenizer(llama)
