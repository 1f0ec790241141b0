"""Tasks of lm-evaluation-harness: what is asked of the model, and which scores come out."""

import json
import sys

import numpy as np
import pytest

from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.export.gate import Gate
from intel_ft.export.harness import _draw, continuation_score, harness_answer
from intel_ft.export.tasks import load_task, task_code
from intel_ft.runtimes.language_model import Completion

VOCABULARY = 7
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
LOG_P = TABLE - np.log(np.exp(TABLE).sum(axis=1, keepdims=True))

TASK = """
task: names
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
target_delimiter: ""
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


class Tokenizer:
    """A token for each of the first VOCABULARY letters."""

    bos_token_id, eos_token_id = None, 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return ["abcdefg".index(letter) for letter in text]


class Bigrams:
    """A model whose next token depends on the last one alone."""

    tokenizer = Tokenizer()

    def __init__(self, window: int | None = None) -> None:
        self.context_window = window
        self.asked: list[tuple] = []

    def logits(self, tokens, positions):
        assert self.context_window is None or len(tokens) <= self.context_window
        return TABLE[tokens[positions]]

    def generate(self, prompt, sampling, stream=None):
        self.asked.append((prompt, sampling))
        return Completion("".join(map(str, prompt)), (), 0.0, True)


def test_a_continuation_is_scored_behind_its_context() -> None:
    score, greedy = continuation_score(Bigrams(), [1, 2], [3, 4])
    assert score == pytest.approx(LOG_P[2, 3] + LOG_P[3, 4])
    assert not greedy
    best = int(TABLE[2].argmax())
    assert continuation_score(Bigrams(), [1, 2], [best])[1]


def test_the_end_is_scored_of_what_is_longer_than_the_window() -> None:
    longer = continuation_score(Bigrams(2), [1, 2], [3, 4, 5])
    assert longer[0] == pytest.approx(LOG_P[3, 4] + LOG_P[4, 5])
    assert continuation_score(Bigrams(3), [1, 2], [3, 4])[0] == pytest.approx(
        LOG_P[2, 3] + LOG_P[3, 4]
    )


def test_an_answer_is_generated_as_the_task_says() -> None:
    model = Bigrams(8)
    text = harness_answer(model, [1, 2, 3, 4, 5], {"until": "\n", "max_gen_toks": 5})
    assert text == "345"
    harness_answer(model, [1], {"until": ["a", ""], "do_sample": False, "temperature": 0.7})
    harness_answer(model, [1], {"do_sample": True, "temperature": 0.7, "max_tokens": 3})
    first, second, third = (sampling for _, sampling in model.asked)
    assert (first.max_new_tokens, first.stop, first.temperature) == (5, ("\n",), 0.0)
    assert (second.max_new_tokens, second.stop, second.temperature) == (256, ("a",), 0.0)
    assert (third.max_new_tokens, third.stop, third.temperature) == (3, (), 0.7)


def test_documents_are_drawn_over_all_tasks_of_a_group() -> None:
    drawn = _draw({"b": 1000, "a": 10}, 100)
    assert sum(map(len, drawn.values())) == 100 and len(drawn["b"]) > 90
    assert drawn == _draw({"a": 10, "b": 1000}, 100)
    assert _draw({"a": 3}, 100) == {"a": [0, 1, 2]}


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(EnvironmentProblem, match="pip install lm-eval"):
        load_task("lm_eval:hellaswag")


def test_answers_are_generated_only_for_tasks_that_score_them() -> None:
    assert Gate(task="python").answers == 50
    assert Gate(task="lm_eval:hellaswag").answers == 0


def test_a_task_of_the_harness(tmp_path) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"question": "abcdefg"[i % VOCABULARY], "choices": ["b", "c", "d"], "answer": i % 3}
        for i in range(30)
    ]
    data, file = tmp_path / "data.jsonl", tmp_path / "names.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file.write_text(TASK.format(data=data))
    task = load_task(f"lm_eval:{file}", 20)
    assert task_code(f"lm_eval:{file}") == file.read_text()
    (documents,) = task.documents.values()
    expected = [float(LOG_P[i % VOCABULARY, 1:4].argmax() == i % 3) for i in documents]
    assert len(expected) == 20 and task.scores(Bigrams(), []) == expected
    assert task.scores(Bigrams(), []) == expected  # a second candidate
    with pytest.raises(UserError, match="names has acc"):
        load_task(f"lm_eval:{file}:f1")
    with pytest.raises(UserError, match="its filters are none"):
        load_task(f"lm_eval:{file}:acc,strict").scores(Bigrams(), [])
    with pytest.raises(UserError, match="cannot load"):
        load_task(f"lm_eval:{tmp_path}/no.yaml")
