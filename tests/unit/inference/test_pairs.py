"""Evaluating on pairs: the chosen answers, and the share of pairs that the model tells apart."""

import json

import numpy as np
import pytest
from support.data_tokenizers import tokenizer
from support.preference_runs import judged, pairs, write_rows
from support.small_runs import config_in

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.export.run_data import validation_of_run
from intel_ft.inference.evaluate import evaluate


class Preferring:
    """Each token is as likely as the others, apart from one."""

    def __init__(self, token: int, logit: float) -> None:
        self.token, self.logit = token, logit

    def logits(self, tokens, positions):
        values = np.zeros((len(positions), 400), np.float32)
        values[:, self.token] = self.logit
        return values


def test_the_chosen_answers_are_evaluated_and_the_pairs_told_apart(tmp_path) -> None:
    rows = [
        {"prompt": "i", "chosen": "ab", "rejected": "abc"},
        {"prompt": "i", "chosen": "abcc", "rejected": "ab"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=str(file), template="none")
    prepared = prepare(data, str(file), tokenizer("byte"), answers="auto")
    c = tokenizer("byte").convert_tokens_to_ids("c")
    found = evaluate(Preferring(c, 0.0), prepared)  # the shorter answer is the more likely one
    assert found.pair_accuracy == 0.5 and found.examples == 2
    assert found.supervised_tokens == 3 + 5
    assert found.loss == pytest.approx(np.log(400))
    plain = prepare(data, str(file), tokenizer("byte"), answers="pairs").good_answers()
    assert evaluate(Preferring(c, 0.0), plain).pair_accuracy is None


@pytest.mark.parametrize(("loss", "make", "kept"), [("dpo", pairs, 6), ("kto", judged, 6)])
def test_the_export_measures_a_run_on_its_good_answers(tmp_path, loss, make, kept) -> None:
    for name, first in (("train", 0), ("eval", 50)):
        write_rows(tmp_path / f"{name}.jsonl", make(6, first))
    config = config_in(
        tmp_path, method={"name": "preference", "loss": loss}, max_tokens_per_row=256
    )
    found = validation_of_run(config, tokenizer("byte")).prepared
    assert len(found.examples) == len(found.conversations) == kept
    assert type(found.examples).__name__ == "Examples"
    assert {c.messages[-1].content for c in found.conversations} == {
        row["chosen"] for row in pairs(6, 50)
    }
