"""`--base` and what eval takes from a run: how the command line passes them on."""

import pytest

from intel_ft import api
from intel_ft.cli import chat, generate
from intel_ft.cli import eval as eval_verb
from intel_ft.errors import UserError
from intel_ft.inference.evaluate import EvalResult


def test_eval_passes_on_only_what_was_given(monkeypatch, capsys) -> None:
    calls = []

    def evaluate(*args, **named):
        calls.append((args, named))
        return EvalResult(1.0, 2.7, 3, 4, loss_on="all")

    monkeypatch.setattr(api, "evaluate", evaluate)
    eval_verb.run("run", "rows.jsonl")
    eval_verb.run("run", "rows.jsonl", loss_on="all", max_length=64, base="there")
    (_, plain), (_, given) = calls
    assert all(plain[key] is None for key in ("loss_on", "max_length", "on_long", "data_format"))
    assert (given["loss_on"], given["max_length"], given["base"]) == ("all", 64, "there")
    assert "loss on            all" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [chat, generate])
def test_a_server_has_no_base_to_replace(verb) -> None:
    with pytest.raises(UserError, match="--base"):
        verb.run(server="http://127.0.0.1:9", model="m", base="there", **_prompt(verb))


def _prompt(verb) -> dict[str, str]:
    return {"source": "a", "prompt": "b"} if verb is generate else {}


def test_another_base_is_for_adapters(tmp_path) -> None:
    with pytest.raises(UserError, match="applies only to adapters"):
        api.load_model("tiny-python-llama", base=tmp_path)
