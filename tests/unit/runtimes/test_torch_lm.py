"""Loss, generation and chat with a torch model, compared with plain transformers."""

import ast
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.export_fixtures import PAGE, make_adapter, make_examples
from transformers import AutoModelForCausalLM

from intel_ft.artifacts.resolve import resolve
from intel_ft.backends import cpu
from intel_ft.errors import IntelFTError, UserError
from intel_ft.inference.chat import PROMPT, chat, local_reply
from intel_ft.inference.evaluate import cross_entropy, evaluate, is_python
from intel_ft.inference.prompt_template import prompt_template
from intel_ft.runtimes.language_model import Completion, Sampling, make_completion
from intel_ft.runtimes.open_model import open_model
from intel_ft.runtimes.text_stream import TextStream
from intel_ft.templates.examples import Examples
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.prompt import prompt_tokens

KNOWN = PAGE[: PAGE.index(" sum(value")]  # ends where a token does


@pytest.fixture(scope="module")
def model(page_base):
    return open_model(resolve(str(page_base)), dtype="float32")


def _prepared(examples, conversations=()):
    return SimpleNamespace(examples=examples, conversations=conversations, template="none")


def test_loss_is_that_of_transformers(page_base, model) -> None:
    examples = make_examples(model.tokenizer)
    reference = AutoModelForCausalLM.from_pretrained(page_base, dtype=torch.float32)
    total, count = 0.0, 0
    for i in range(len(examples)):
        tokens, supervised = examples[i]
        ids = torch.from_numpy(tokens.astype(np.int64))
        labels = torch.where(torch.from_numpy(supervised), ids, -100)
        n = int(supervised.sum())
        total += reference(input_ids=ids[None], labels=labels[None]).loss.item() * n
        count += n
    result = evaluate(model, _prepared(examples))
    assert result.supervised_tokens == count
    assert result.examples == len(examples)
    assert result.loss == pytest.approx(total / count, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert (result.exact_match, result.parses) == (None, None)


def test_a_token_beyond_the_embedding_is_named(page_base) -> None:
    model = open_model(resolve(str(page_base)), dtype="float32")
    rows = model.model.get_input_embeddings().weight.shape[0]
    while len(model.tokenizer) <= rows:
        model.tokenizer.add_tokens(f"token-{len(model.tokenizer)}")
    for call in (
        lambda: model.generate([rows], Sampling(max_new_tokens=1)),
        lambda: model.logits(np.array([1, rows], np.int32), np.array([0])),
    ):
        with pytest.raises(UserError, match=rf"and 'token-{rows}' \({rows}\)"):
            call()


def test_adapter_changes_the_loss_and_bf16_is_near(page_base, model, tmp_path) -> None:
    adapter = make_adapter(page_base, tmp_path / "adapter", size=0.2)
    examples = _prepared(make_examples(model.tokenizer))
    plain = evaluate(model, examples).loss
    assert abs(evaluate(open_model(resolve(str(adapter))), examples).loss - plain) > 0.02
    half = open_model(resolve(str(page_base)), dtype="bfloat16")
    assert evaluate(half, examples).loss == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"avx2"}, torch.float32), ({"avx512_bf16"}, torch.bfloat16)]
)
def test_weights_have_the_dtype_of_the_fastest_gemm(page_base, flags, dtype, monkeypatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: flags)
    assert open_model(resolve(str(page_base))).model.dtype == dtype


def test_nothing_to_measure_and_a_broken_model(model) -> None:
    none = Examples(np.array([1, 5, 6], np.int32), np.zeros(3, bool), np.array([0, 3]))
    with pytest.raises(UserError, match="no supervised token"):
        evaluate(model, _prepared(none))
    broken = SimpleNamespace(logits=lambda tokens, at: np.full((len(at), 9), np.nan, np.float32))
    some = Examples(none.tokens, np.array([False, True, True]), none.offsets)
    with pytest.raises(IntelFTError, match="loss of example 1 is nan"):
        evaluate(broken, _prepared(some))


def test_cross_entropy_of_large_logits() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 0.0]], np.float32)
    losses = cross_entropy(logits, np.array([1, 0], np.int32))
    np.testing.assert_allclose(losses, [1e4, math.log(2)], rtol=1e-6)


def test_exact_match_and_parses(model) -> None:
    """The model has memorized PAGE: its own continuation is the reference."""
    question = KNOWN
    prompt = prompt_tokens(model.tokenizer, "none", (Message("user", question),))
    known = model.generate(prompt, Sampling(max_new_tokens=20)).text
    pairs = [(question, f" {known}\n"), (question, "something else")]
    conversations = [Conversation((Message("user", q), Message("assistant", a))) for q, a in pairs]
    conversations.insert(0, Conversation(text="ready-made, cannot be asked"))
    result = evaluate(
        model,
        _prepared(make_examples(model.tokenizer), conversations),
        generate=5,
        max_new_tokens=20,
    )
    assert (result.generated, result.exact_match) == (2, 0.5)
    assert result.parses in (0.0, 1.0)


def test_is_python() -> None:
    assert is_python("def f():\n    return '\\d'\n")
    assert not any(map(is_python, ["", "  \n", "def f(:", "x = '\0'", "(" * 9999]))
    ast.parse("")  # an empty answer would otherwise count


def test_generation(model) -> None:
    prompt = model.tokenizer(KNOWN)["input_ids"]
    streamed: list[str] = []
    greedy = model.generate(prompt, Sampling(max_new_tokens=24), streamed.append)
    assert "".join(streamed) == greedy.text
    assert len(streamed) > 5
    assert "(value." in greedy.text[:20]  # it has learnt, so this is not about ties
    assert len(greedy.new_tokens) == 24
    assert not greedy.stopped
    before = torch.get_rng_state()
    hot = Sampling(max_new_tokens=12, temperature=3.0, top_k=40, top_p=0.99, seed=1)
    assert model.generate(prompt, hot) != greedy
    assert model.generate(prompt, hot).text == model.generate(prompt, hot).text
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(UserError, match="context window is 256"):
        model.generate(prompt * 20, hot)
    with pytest.raises(UserError, match="empty"):
        model.generate([], hot)
    nearly_full = (prompt * 20)[:250]
    assert len(model.generate(nearly_full, Sampling(max_new_tokens=100)).new_tokens) <= 6


def test_stops_at_any_end_token(page_base, tmp_path) -> None:
    model = open_model(resolve(str(page_base)))
    prompt = model.tokenizer(KNOWN)["input_ids"]
    free = model.generate(prompt, Sampling(max_new_tokens=12))
    model._stops = model._stops | {free.new_tokens[5]}
    streamed: list[str] = []
    cut = model.generate(prompt, Sampling(max_new_tokens=12), streamed.append)
    first = free.new_tokens.index(free.new_tokens[5])
    assert cut.new_tokens == free.new_tokens[:first]
    assert cut.stopped
    assert "".join(streamed) == cut.text


def test_stream_holds_back_broken_characters(model) -> None:
    seen: list[str] = []
    stream = TextStream(model.tokenizer, seen.append, frozenset())
    for token in model.tokenizer("a 🙂 b")["input_ids"]:
        stream.add(token)
        assert "\ufffd" not in "".join(seen)
    stream.end()
    assert "".join(seen) == "a 🙂 b"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<think>\n\n</think>\n\nIt is 4.", "It is 4."),
        ("\n</think>\n\nIt is 4.", "It is 4."),
        ("<think>\nadd\n</think>\n\nIt is 4.", "<think>\nadd\n</think>\n\nIt is 4."),
        ("<that> is 4", "<that> is 4"),
        ("  4", "  4"),
    ],
)
def test_an_empty_thought_is_no_part_of_an_answer(model, answer, text) -> None:
    tokens = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    seen: list[str] = []
    stream = TextStream(model.tokenizer, seen.append, frozenset())
    for token in tokens:
        stream.add(token)
    stream.end()
    assert "".join(seen) == text
    assert make_completion(model.tokenizer, tokens, frozenset(), 1.0).text == text


def test_sampling_bounds() -> None:
    for wrong in ({"top_p": 0}, {"temperature": -1}, {"max_new_tokens": 0}, {"top_k": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Sampling(**wrong)


def test_prompt_template(model) -> None:
    artifact = resolve("org/base")
    trained = SimpleNamespace(template="alpaca")
    assert prompt_template(trained, model.tokenizer)[0] == "alpaca"
    assert prompt_template(trained, model.tokenizer, "llama2")[0] == "llama2"
    assert prompt_template(artifact, model.tokenizer)[0] == "chatml"


class _Parrot:
    """Answers with how many tokens it was given."""

    context_window = 120

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.prompts: list[str] = []

    def generate(self, prompt, sampling, stream) -> Completion:
        self.prompts.append(self.tokenizer.decode(prompt))
        stream("answer")
        return Completion("answer", (1,), 0.0, True)


def _talk(model, lines: list[str]) -> str:
    waiting = iter(lines)
    shown: list[str] = []

    def read(prompt: str) -> str:
        assert prompt == PROMPT == "Ask > "
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    reply = local_reply(model, "alpaca", Sampling(max_new_tokens=20))
    chat(reply, None, read=read, write=shown.append)
    return "".join(shown)


def test_chat_keeps_history_and_leaves(model) -> None:
    parrot = _Parrot(model.tokenizer)
    parrot.context_window = None
    assert _talk(parrot, ["first", "", "second", "exit", "never"]) == "answer\nanswer\n"
    assert len(parrot.prompts) == 2
    assert "first" in parrot.prompts[1]
    assert "answer" in parrot.prompts[1]
    assert _talk(parrot, ["third"]) == "answer\n\n"  # end of input leaves too


def test_chat_removes_the_oldest_exchanges_when_full(model) -> None:
    parrot = _Parrot(model.tokenizer)
    parrot.context_window = 330
    shown = _talk(parrot, [f"w{i}" for i in range(6)] + ["long " * 200, "after", "exit"])
    assert "w0" in parrot.prompts[1]
    assert "w0" not in parrot.prompts[5]
    assert "w5" in parrot.prompts[5]
    assert "too long: the model's context window is 330 tokens)" in shown
    assert "after" in parrot.prompts[-1]
    assert "long" not in parrot.prompts[-1]
