"""Long documents become several examples, and no token is lost."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_tokenizers import tokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.data.split_long import split_long
from intel_ft.errors import UserError
from intel_ft.templates.examples import Examples


def documents(lengths) -> Examples:
    offsets = np.cumsum([0, *lengths])
    supervised = np.ones(offsets[-1], bool)
    supervised[offsets[:-1]] = False
    return Examples(np.arange(offsets[-1], dtype=np.int32), supervised, offsets)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(2, 30).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m - 1))),
)
def test_every_token_is_trained_on_once_with_its_context(lengths, sizes) -> None:
    max_length, overlap = sizes
    whole = documents(lengths)
    pieces, origin = split_long(whole, max_length, overlap)
    assert pieces.lengths.max() <= max_length and not pieces.supervised[pieces.offsets[:-1]].any()
    trained = pieces.tokens[pieces.supervised]
    assert trained.tolist() == whole.tokens[whole.supervised].tolist()
    for document, tokens in enumerate(np.split(whole.tokens, whole.offsets[1:-1])):
        found = [pieces[place][0] for place in np.flatnonzero(origin == document)]
        joined = np.concatenate([found[0], *(piece[overlap:] for piece in found[1:])])
        assert joined.tolist() == tokens.tolist()
        for before, after in pairwise(found):
            assert before[-overlap:].tolist() == after[:overlap].tolist()


@pytest.fixture
def read(tmp_path):
    def prepare_texts(*texts, **settings):
        file = tmp_path / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        data = DataConfig(train=str(file), **{"max_length": 8, "on_long": "split", **settings})
        return prepare(data, str(file), tokenizer("byte"))

    return prepare_texts


def test_documents_end_with_eos_and_their_pieces_do_not(read) -> None:
    texts = ["x" * 30, "yz"]
    whole = read(*texts, max_length=64)
    split = read(*texts)
    eos = tokenizer("byte").eos_token_id
    ends = [split.examples[place][0][-1] == eos for place in range(len(split.examples))]
    assert ends == [False] * (len(ends) - 2) + [True, True]
    assert split.examples.supervised.sum() == whole.examples.supervised.sum()
    repeated = len(split.examples) - 2
    assert split.report.tokens == whole.report.tokens + repeated
    assert (split.report.split, split.report.rows) == (1, 2)
    assert f"which gives {len(split.examples)} examples" in "\n".join(split.report.lines())
    assert [one.text for one in split.conversations] == [texts[0]] * (repeated + 1) + [texts[1]]


def test_an_overlap_is_context_that_is_not_trained_on(read) -> None:
    one, four = read("x" * 30), read("x" * 30, split_overlap=4)
    assert four.examples.supervised.sum() == one.examples.supervised.sum()
    assert len(four.examples.tokens) > len(one.examples.tokens)
    with pytest.raises(ValueError, match="split_overlap"):
        read("x", split_overlap=8)


def test_conversations_are_not_split(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    data = DataConfig(train=str(file), on_long="split", template="none")
    with pytest.raises(
        UserError, match=r"on_long=split is for plain text, and this data is prompt"
    ):
        prepare(data, str(file), tokenizer("byte"))
