"""Encoding in batches, ahead of time, gives what encoding row by row gives: ids, mask, bounds."""

import gc
import itertools
import json
from random import Random

import numpy as np
import pytest
from support.data_tokenizers import KINDS, TEMPLATES, tokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.gc_pause import gc_paused
from intel_ft.templates.control_tokens import (
    completion_controls,
    content_controls,
    without_control_tokens,
)
from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.examples import Examples, concatenate
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import renderer

WORDS = [
    "How",
    "are",
    "you?",
    "def f(x):\n    return x",
    "🙂",
    "é",
    "  ",
    "\n\n",
    "thank",
    "[INST]",
]
HOSTILE = ["</s>", "<|im_start|>system\n", "<|eot|>", "<think>", "<s>"]


def some_conversations(count, systems, hostile):
    random = Random(0)

    def words():
        vocabulary = WORDS + HOSTILE * (hostile and random.random() < 0.5)
        return "x" + " ".join(random.choices(vocabulary, k=random.randint(1, 12))) + "."

    found = []
    for _ in range(count):
        turns = [Message("system", words())] if systems and random.random() < 0.3 else []
        for _ in range(random.randint(1, 3)):
            context = words() if random.random() < 0.3 else ""
            turns += [Message("user", words(), context), Message("assistant", words())]
        found.append(Conversation(tuple(turns)))
    return found


def row_by_row(tok, spans):
    """One example's ids and mask by the rules in data.encode's docstring, and nothing else."""
    backend = tok.backend_tokenizer
    if getattr(backend.pre_tokenizer, "add_prefix_space", False) is True:
        backend = type(backend).from_str(backend.to_str())
        backend.pre_tokenizer.add_prefix_space = False
    added = backend.get_added_tokens_decoder()
    sentencepiece = backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁")

    def ids_of(text, encoder=backend):
        return encoder.encode(text, add_special_tokens=False).ids

    def controls(ids, kinds):
        return sum(token in kinds for token in ids)

    def ids_after(lead, text, encoder=backend):
        before = ids_of(lead, encoder)
        together = ids_of(lead + text, encoder)
        return together[len(before) :] if together[: len(before)] == before else None

    def by_part(parts, lead, plain):
        own = []
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            if part.kind in ("content", "completion"):
                own += ids_of(part.text, plain)
                continue
            words = after is not None and after.kind in ("content", "completion")
            text = part.text.removesuffix(" ") if sentencepiece and words else part.text
            front = "a" if own and part.kind == "written" and sentencepiece else ""
            front = front if own else lead
            after_front = ids_after(front, text)
            own += ids_of(text) if after_front is None else after_front
        return own

    swallows = sentencepiece and ids_of("a") == ids_of(" a")
    ids, mask, lead = [], [], ""
    runs = [list(group) for _, group in itertools.groupby(enumerate(spans), run_of)]
    for number, run in enumerate(runs):
        parts = [span for _, span in run]
        first = parts[0].kind
        behind = parts[-1].text
        if first in ("start", "end"):
            own = [tok.convert_tokens_to_ids(behind)]
            lead = behind if sentencepiece and first == "end" else ""
        elif first in ("template", "content"):
            answer = runs[number + 1][0][1].kind if number + 1 < len(runs) else ""
            if sentencepiece and answer in ("written", "completion"):
                parts[-1] = parts[-1]._replace(text=behind.removesuffix(" "))
            own = ids_after(lead, "".join(part.text for part in parts))
            kinds = content_controls(added)
            written = [ids_of(part.text) for part in parts if part.kind == "template"]
            if controls(own, kinds) != sum(controls(part, kinds) for part in written):
                own = by_part(parts, lead, without_control_tokens(backend, kinds))
            lead = "" if behind.endswith(" ") or not sentencepiece else behind
            lead = lead if parts[-1].kind == "template" else lead[-1:]
        else:
            text = "".join(part.text for part in parts)
            text = " " + text if swallows and not lead and text.startswith(" ") else text
            own = ids_after(lead, text)
            own = ids_of(text) if own is None else own
            kinds = completion_controls(added)
            written = [ids_of(part.text) for part in parts if part.kind == "written"]
            if controls(own, kinds) != sum(controls(part, kinds) for part in written):
                plain = without_control_tokens(backend, kinds)
                if written:
                    own = by_part(parts, lead, plain)
                else:
                    after = ids_after(lead, text, plain)
                    own = ids_of(text, plain) if after is None else after
            lead = "" if parts[-1].kind == "completion" or behind.endswith(" ") else behind
            lead = lead if sentencepiece else ""
        ids += own
        mask += [first not in ("start", "template", "content") and parts[0].trained] * len(own)
    return ids, mask


def run_of(numbered):
    """Spans that are encoded together have the same."""
    number, span = numbered
    if span.kind in ("template", "content"):
        return "context"
    return ("answer", span.trained) if span.kind in ("written", "completion") else number


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_batches_give_what_rows_give(monkeypatch, chunk, template, kind):
    monkeypatch.setattr("intel_ft.templates.encode._CHUNK", chunk)
    tok = tokenizer(kind)
    special = special_tokens_of(tok)
    refuses = template == "tokenizer" and kind == "byte, no bos, pad is eos"
    render = renderer(template, tok, special, None)
    rows = [render(talk) for talk in some_conversations(23, not refuses, hostile=True)]
    examples = SpanEncoder(tok, special).encode(iter(rows))
    assert (examples.tokens.dtype, examples.supervised.dtype) == (np.int32, np.bool_)
    assert examples.offsets.dtype == np.int64 and len(examples) == len(rows)
    for index, spans in enumerate(rows):
        ids, supervised = examples[index]
        assert (ids.tolist(), supervised.tolist()) == row_by_row(tok, spans)


def test_truncation_is_that_of_each_row(tmp_path):
    tok = tokenizer("byte")
    talks = some_conversations(60, systems=False, hostile=False)
    file = tmp_path / "rows.jsonl"
    turns = [[{"role": m.role, "content": m.full_content} for m in talk.messages] for talk in talks]
    file.write_text("\n".join(json.dumps({"messages": row}) for row in turns))
    limit = 90
    data = DataConfig(train=str(file), template="chatml", max_length=limit, on_long="truncate")
    found = prepare(data, str(file), tok)
    render = renderer("chatml", tok, special_tokens_of(tok), None)
    expected = []
    for talk in talks:
        ids, mask = row_by_row(tok, render(talk))
        if len(ids) > limit:
            last = limit - 1
            if not (mask[last] and mask[last - 1]):  # in front of an answer: the one before ends it
                last = max((i for i in range(last) if mask[i]), default=-1)
            ids, mask = [*ids[:last], tok.eos_token_id], [*mask[:last], True]
            if last < 0:
                continue
        expected.append((ids, [False, *mask[1:]]))
    got = [tuple(part.tolist() for part in found.examples[i]) for i in range(len(found.examples))]
    assert got == expected
    assert found.report.dropped == len(talks) - len(expected) > 0
    assert found.report.truncated > 0


def test_a_failing_row_ends_the_encoding_with_its_own_error():
    tok = tokenizer("byte")
    special = special_tokens_of(tok)
    render = renderer("chatml", tok, special, None)

    def rows():
        yield from map(render, some_conversations(3, systems=False, hostile=False))
        raise ZeroDivisionError("row 4")

    with pytest.raises(ZeroDivisionError, match="row 4"):
        SpanEncoder(tok, special).encode(rows())


def test_no_parts_join_to_no_examples():
    assert len(concatenate([])) == 0
    one = Examples(np.array([5, 6], np.int32), np.array([False, True]), np.array([0, 2]))
    twice = concatenate([one, concatenate([]), one])
    assert twice.tokens.tolist() == [5, 6, 5, 6] and twice.offsets.tolist() == [0, 2, 4]
    assert twice.offsets.dtype == np.int64 and twice.tokens.dtype == np.int32


def test_the_collector_runs_again_afterwards_as_before():
    with pytest.raises(ValueError), gc_paused():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
