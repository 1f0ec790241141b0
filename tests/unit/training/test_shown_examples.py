"""The mask that `validate --show` prints is the one that the trainer gets, example by example."""

import json

import numpy as np
import pytest
from support import agent_templates
from transformers import AutoTokenizer

from intel_ft.cli.show_examples import BEGIN, END, print_examples
from intel_ft.cli.validate import _check_inputs
from intel_ft.training.run import train
from intel_ft.training.workload import TrainingModel

CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL], "thinking": "look"},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "It is 1."},
            {"role": "user", "content": "And two?"},
            {"role": "assistant", "content": "It is 2.", "reasoning_content": "add"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Three?"},
            {"role": "assistant", "content": "No.", "weight": 0},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
    },
]


@pytest.fixture
def config(configure, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = agent_templates.QWEN3
    tokenizer.save_pretrained(tmp_path / "base")
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def config(**data):
        data = {"template": "tokenizer", "max_length": 512} | data
        settings = {"max_tokens_per_row": 512, "max_steps": 1, "global_batch_size": 8}
        return configure(data=data, share_prefixes=False, **settings)  # examples are read from rows

    return config


def trained_rows(config, monkeypatch):
    """Each example's ids and mask, from the rows that the trainer's loss got."""
    seen = []
    plain = TrainingModel.loss_sum

    def loss_sum(self, row, *, packed):
        supervised = np.zeros(len(row.tokens), bool)
        supervised[row.predict + 1] = True
        assert row.tokens[row.predict + 1].tolist() == row.targets.tolist()
        for start, end in zip(row.bounds, row.bounds[1:], strict=False):
            seen.append((row.tokens[start:end].tolist(), supervised[start:end].tolist()))
        return plain(self, row, packed=packed)

    monkeypatch.setattr(TrainingModel, "loss_sum", loss_sum)
    train(config)
    return seen


def test_rows_of_the_validation_set_that_the_training_set_has_are_counted(config, tmp_path, caplog):
    file = tmp_path / "eval.jsonl"
    unseen = [{"role": "user", "content": "Four?"}, {"role": "assistant", "content": "Yes."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in (ROWS[1], {"messages": unseen})))
    assert _check_inputs(config(eval=str(file)), 0)[0]["eval_examples_in_train"] == 1
    assert "1 of 2 validation examples" in caplog.text
    assert _check_inputs(config(eval=None), 0)[0]["eval_examples_in_train"] is None


@pytest.mark.parametrize(
    ("data", "examples"),
    [
        ({}, 3),
        ({"earlier_answers": "context"}, 2),
        ({"loss_on": "last"}, 2),
        ({"roles_to_train": ["user", "assistant"]}, 3),
    ],
)
def test_what_is_shown_is_what_the_trainer_gets(config, monkeypatch, capsys, data, examples):
    settings = config(**data)
    facts, shown = _check_inputs(settings, 100)
    assert facts["train_examples"] == examples == len(shown)
    trained = trained_rows(settings, monkeypatch)
    assert sorted(trained) == sorted((one.tokens, one.trained) for one in shown)
    # The printed text marks the same tokens.
    print_examples(shown)
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(settings.model.name_or_path)
    for one in shown:
        text = "".join(f"{BEGIN}{part}{END}" if flag else part for part, flag in one.parts)
        assert text in printed and text.replace(BEGIN, "").replace(END, "") == tokenizer.decode(
            one.tokens
        )
        learnt = [token for token, flag in zip(one.tokens, one.trained, strict=True) if flag]
        assert "".join(part for part, flag in one.parts if flag) == tokenizer.decode(learnt)


def test_the_run_says_which_answers_are_examples_of_their_own(config):
    facts, _ = _check_inputs(config(), 0)
    assert (facts["separated_conversations"], facts["context_only_answers"]) == (1, 0)
    assert facts["unlike_chat_template"] == 0
    facts, _ = _check_inputs(config(earlier_answers="context"), 0)
    assert (facts["separated_conversations"], facts["context_only_answers"]) == (0, 2)
