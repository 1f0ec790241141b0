"""The shipped dataset, tokenizer and model are what their cards say they are."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "intel_ft" / "assets"
DATASET = ASSETS / "docstring-to-python"
MODEL = ASSETS / "tiny-python-llama"
SIDES = ("train", "heldout")


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


build_dataset = load_tool("build_dataset")


@pytest.fixture(scope="module")
def rows():
    return {
        side: [
            json.loads(line)
            for line in (DATASET / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for side in SIDES
    }


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def training():
    return json.loads((MODEL / "training.json").read_text(encoding="utf-8"))


# data


def test_dataset_is_worth_training_and_evaluating_on(rows):
    assert len(rows["train"]) > 3000
    assert 120 <= len(rows["heldout"]) <= 500


def test_split_shares_no_module_and_no_output(rows):
    modules = [{build_dataset.group_of(row["module"]) for row in rows[side]} for side in SIDES]
    outputs = [[row["output"] for row in rows[side]] for side in SIDES]
    assert not modules[0] & modules[1]
    assert not set(outputs[0]) & set(outputs[1])
    for side in outputs:
        assert len(side) == len(set(side))


@pytest.mark.parametrize("side", SIDES)
def test_split_is_the_one_pretraining_leaves_out(rows, side):
    assert all(build_dataset.heldout(row["module"]) == (side == "heldout") for row in rows[side])


@pytest.mark.parametrize(
    "siblings",
    [
        ("heapq", "test.test_heapq"),
        ("_pydecimal", "decimal", "test.test_decimal"),
        ("_pyio", "io"),
        ("json.decoder", "json", "test.test_json.test_decode"),
        ("urllib.request", "test.test_urllib2"),
        ("datetime", "test.datetimetester"),
    ],
)
def test_a_module_its_twin_and_its_tests_fall_on_one_side(siblings):
    assert len({build_dataset.group_of(module) for module in siblings}) == 1


@pytest.mark.parametrize("side", SIDES)
def test_outputs_are_one_function_with_its_docstring(rows, side):
    for row in rows[side]:
        (function,) = ast.parse(row["output"]).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert function.name == row["name"].rpartition(".")[2]
        assert row["instruction"].startswith("Write the Python ")
        assert ast.get_docstring(function).strip() in row["instruction"]
        assert 3 <= row["output"].count("\n") <= 40


def test_dedenting_keeps_the_rest_byte_for_byte():
    source = (
        "class A:\n"
        "    @property\n"
        "    def f(self):  # why\n"
        '        """Say what\n        it is."""\n'
        "        # kept\n"
        "        x = 'a'   +  \\\n"
        "            'b'\n"
        "\n"
        "        return x\n"
    )
    (node,) = (node for _, node in build_dataset.functions_of(ast.parse(source)))
    assert build_dataset.dedented_source(node, source.splitlines(keepends=True)) == (
        "@property\n"
        "def f(self):  # why\n"
        '    """Say what\n    it is."""\n'
        "    # kept\n"
        "    x = 'a'   +  \\\n"
        "        'b'\n"
        "\n"
        "    return x\n"
    )


def test_a_function_that_dedenting_would_change_is_left_out():
    source = 'class A:\n    def f(self):\n        "Doc."\n        return """a\n        b"""\n'
    (node,) = (node for _, node in build_dataset.functions_of(ast.parse(source)))
    assert build_dataset.dedented_source(node, source.splitlines(keepends=True)) is None


# tokenizer


def test_tokenizer_has_4096_entries_and_three_distinct_special_tokens(tokenizer):
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(tokenizer) == 4096
    assert len(set(special)) == 3
    assert tokenizer.convert_ids_to_tokens(list(special)) == ["<s>", "</s>", "<pad>"]
    assert tokenizer.model_max_length == 1024


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet=" \t\n\r0aé_.(#\u3000"))
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *ids]


def test_dataset_comes_back_exactly_and_fits_the_context(tokenizer, rows):
    for row in rows["heldout"] + rows["train"]:
        text = row["instruction"] + row["output"]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) < tokenizer.model_max_length


def test_indentation_is_one_token_and_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize("\n        return") == ["ĊĠĠĠĠĠĠĠĠ", "return"]
    assert tokenizer.tokenize("x=2026") == ["x", "=", "2", "0", "2", "6"]


def test_chat_template_renders_system_and_several_turns(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "a + b"},
        {"role": "user", "content": "Subtract."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s>Be brief.\n\n### Instruction:\nAdd.\n\n### Response:\na + b</s>"
        "### Instruction:\nSubtract.\n\n### Response:\n"
    )
    answered = [*messages, {"role": "assistant", "content": "a - b"}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole == text + "a - b</s>"


# model


def test_model_is_small_and_loads_from_safetensors(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    assert (MODEL / "model.safetensors").stat().st_size < 16 * 2**20
    model = AutoModelForCausalLM.from_pretrained(MODEL, use_safetensors=True)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == tokenizer.model_max_length
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.generation_config, name) == getattr(tokenizer, name)


def test_model_has_learned_what_its_record_says(tokenizer, rows, training):
    """Measured on held-out rows, whose modules the record's number was measured on."""
    import torch
    from transformers import AutoModelForCausalLM

    assert training["heldout_perplexity"] < training["unigram_heldout_perplexity"] / 10
    assert training["tokens_seen"] >= training["train_tokens"]
    assert len(training["samples"]) == 3

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    nats, tokens = 0.0, 0
    for row in rows["heldout"][:20]:
        ids = torch.tensor([tokenizer(row["output"])["input_ids"]])
        with torch.no_grad():
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    perplexity = torch.tensor(nats / tokens).exp().item()
    assert perplexity < training["unigram_heldout_perplexity"] / 5
