"""New tokens: files of the tokenizer, rows of the embeddings, and their gradients."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from support.data_tokenizers import KINDS, tokenizer
from support.model_fixtures import SHAPE, row_of
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.layers.packed_attention import NAME
from intel_ft.models.adapter import add_lora, fuse, save_adapter
from intel_ft.models.loss import loss_sum
from intel_ft.models.new_tokens import add_rows
from intel_ft.models.saved_adapter import apply_adapter
from intel_ft.models.tokenizer import copy_tokenizer, load_tokenizer
from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.spans import Span, SpecialTokens

ROW = row_of(9, 14)
NEW = [60, 61, 62]  # the first has a row already


@pytest.fixture(params=KINDS)
def folder(request, tmp_path) -> Path:
    """A model folder with a tokenizer and no weights."""
    tokenizer(request.param).save_pretrained(tmp_path / "model")
    LlamaConfig(**SHAPE).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_written_files_read_as_the_tokenizer_that_trained(folder, tmp_path) -> None:
    model = ModelConfig(
        name_or_path=str(folder), add_tokens=["<GENE>", "kinase"], add_special_tokens=["<|call|>"]
    )
    plain, extended = load_tokenizer(model.base), load_tokenizer(model)
    ids = [extended.convert_tokens_to_ids(text) for text in model.new_tokens]
    assert sorted(ids) == list(range(min(ids), min(ids) + 3))
    assert min(ids) > max(plain.get_vocab().values())
    text = "How <GENE> kinase<|call|> you"
    assert [i for i in extended(text, add_special_tokens=False).input_ids if i in ids] == ids
    (tmp_path / "written").mkdir()
    copy_tokenizer(extended, tmp_path / "written")
    again = load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "written")))
    assert again.get_vocab() == extended.get_vocab()
    for sample in (text, "a kinase", "How are you?"):
        assert again(sample).input_ids == extended(sample).input_ids
    assert "call" not in again.decode(ids, skip_special_tokens=True)
    assert plain("How are you?").input_ids == extended("How are you?").input_ids
    config = json.loads((tmp_path / "written" / "tokenizer_config.json").read_text())
    assert config["ordinary_added_tokens"] == ["<GENE>", "kinase"]


def test_words_become_added_tokens_and_never_added_controls(folder) -> None:
    model = ModelConfig(
        name_or_path=str(folder), add_tokens=["<|gene|>"], add_special_tokens=["<|call|>"]
    )
    loaded = load_tokenizer(model)
    gene, call = (loaded.convert_tokens_to_ids(text) for text in model.new_tokens)
    special = SpecialTokens(None, loaded.eos_token, adds_bos=False, added=())
    spans = [
        Span("<|call|>", "template"),
        Span("you <|gene|> <|call|>", "content"),
        Span("I <|gene|> <|call|>", "completion"),
    ]
    ids = SpanEncoder(loaded, special).encode([spans]).tokens.tolist()
    assert (ids.count(gene), ids.count(call)) == (2, 1)


def test_what_the_tokenizer_has_is_not_added_again(folder) -> None:
    model = ModelConfig(name_or_path=str(folder), add_tokens=["<|im_start|>"])
    assert load_tokenizer(model).get_vocab() == load_tokenizer(model.base).get_vocab()


def test_without_tokenizer_json_it_is_refused(tmp_path) -> None:
    Tokenizer.from_str(tokenizer("byte").backend_tokenizer.to_str()).model.save(str(tmp_path))
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(ModelConfig(name_or_path=str(tmp_path), add_tokens=["<a>"]))


def make(tied: bool = False, **more) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"tie_word_embeddings": tied} | more))
    return model.eval().requires_grad_(False)


def adapted(tied: bool, method: MethodConfig, **more):
    model = make(tied, **more)
    before = copy.deepcopy(model)
    add_rows(model, NEW)
    return add_lora(model, method, "base", None, NEW), before


@pytest.mark.parametrize("tied", [True, False])
def test_rows_start_as_the_mean_and_others_stay(tied) -> None:
    model, before = adapted(tied, MethodConfig(r=2))
    table = model.get_base_model().get_input_embeddings()
    wanted = before.get_input_embeddings().weight
    assert table.weight.shape == (63, 32)
    torch.testing.assert_close(table.weight[:60], wanted[:60])
    for id_ in NEW:
        torch.testing.assert_close(table.weight[id_], wanted[:60].mean(0))
    assert model.config.vocab_size == 63


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_gradients_are_those_of_whole_embeddings(tied, cap) -> None:
    """Those of the new tokens' rows, and none of others."""
    model, _ = adapted(tied, MethodConfig(r=2, alpha=8))
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.requires_grad):
            weight.add_(torch.randn_like(weight) * 0.3)
    if cap:  # a head that is not plain
        model.config.final_logit_softcapping = cap
    tokens = ROW.tokens.copy()
    tokens[[2, 5, 11]] = NEW
    targets = ROW.targets.copy()
    targets[[0, 4]] = NEW[1:]
    row = type(ROW)(tokens, ROW.positions, ROW.bounds, ROW.predict, targets)
    exact = copy.deepcopy(model).merge_and_unload().double()
    tables = {exact.get_input_embeddings().weight, exact.get_output_embeddings().weight}
    for table in tables:
        table.requires_grad_(True)
    logits = torch.cat(
        [
            exact(torch.from_numpy(tokens[a:b])[None]).logits[0]
            for a, b in zip(row.bounds[:-1], row.bounds[1:], strict=True)
        ]
    )
    wanted = F.cross_entropy(logits[row.predict], torch.from_numpy(targets), reduction="sum")
    wanted.backward()
    model.train()
    model.get_base_model().set_attn_implementation(NAME)
    assert fuse(model).value == "fused"
    loss = loss_sum(model, row, packed=True)
    loss.backward()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)
    rows = {n: w.grad for n, w in model.named_parameters() if "trainable_tokens" in n}
    assert len(rows) == len(tables) == (1 if tied else 2)
    for name, gradient in rows.items():
        whole = exact.get_input_embeddings() if "embed" in name else exact.get_output_embeddings()
        expected = whole.weight.grad[NEW].float()
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_rows_are_applied_to_a_base_that_has_none(tied, tmp_path) -> None:
    model, before = adapted(tied, MethodConfig(r=2))
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.requires_grad):
            weight.add_(torch.randn_like(weight) * 0.3)
    save_adapter(model, tmp_path)
    ids = torch.tensor([[3, 60, 61, 62, 5]])
    wanted = model.eval()(ids).logits
    found = apply_adapter(copy.deepcopy(before), tmp_path)
    torch.testing.assert_close(found(ids).logits, wanted)
    torch.testing.assert_close(found.merge_and_unload()(ids).logits, wanted, rtol=1e-3, atol=1e-4)
    plain = copy.deepcopy(before)
    plain.resize_token_embeddings(63)  # as peft's AutoPeftModel does, from the tokenizer's length
    plain = PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(plain(ids).logits, wanted)


def test_embeddings_that_cannot_have_trained_rows_are_named() -> None:
    for method, words in (
        (MethodConfig(target_modules=["q_proj", "lm_head"]), "lm_head cannot train single rows"),
        (MethodConfig(modules_to_save=["embed_tokens"]), None),
    ):
        model = make()
        add_rows(model, NEW)
        if words is None:
            layers = add_lora(model, method, "base", None, NEW).peft_config["default"]
            assert list(layers.trainable_token_indices) == ["lm_head"]
            continue
        with pytest.raises(UserError, match=words):
            add_lora(model, method, "base", None, NEW)
    biased = make()
    biased.lm_head = torch.nn.Linear(32, 61)
    with pytest.raises(UserError, match="lm_head has a bias"):
        add_lora(biased, MethodConfig(), "base", None, [60])
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=2)).eval()
    add_rows(gpt, NEW)
    assert add_lora(gpt, MethodConfig(r=2), "base", None, NEW) is not None
