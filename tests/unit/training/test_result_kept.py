"""What was trained is kept, whatever happens after the last step."""

import json
import shutil
import signal

import pytest
from support.small_runs import config_in, fill

from intel_ft.errors import IntelFTError, Stopped
from intel_ft.files import damage
from intel_ft.training import run as run_module
from intel_ft.training import trainer as trainer_module
from intel_ft.training.run import train

GENERATION = {"min_p": 0.1, "temperature": 0.0, "pad_token_id": -1, "eos_token_id": [1, 5]}


@pytest.fixture(scope="module")
def undisturbed(bases, tmp_path_factory):
    """The outcome and the summary of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fill(folder, bases)
    summary = train(config_in(folder))
    return outcome(folder / "run"), summary


def outcome(run):
    """The adapter's bytes, and losses and evaluations by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines]
    return (run / "adapter" / "adapter_model.safetensors").read_bytes(), losses


def fails_once(monkeypatch, module, name, error):
    """Make the function raise `error` when it is called the first time."""
    real, failed = getattr(module, name), []

    def function(*arguments, **options):
        if not failed:
            failed.append(1)
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, function)


@pytest.mark.parametrize(
    ("error", "raised", "code"),
    [
        (ValueError("not ours\nto save"), IntelFTError, 1),
        (KeyboardInterrupt(), Stopped, 128 + signal.SIGINT),
    ],
)
def test_a_result_that_cannot_be_written_is_in_the_checkpoint(
    configure, undisturbed, tmp_path, monkeypatch, error, raised, code
):
    fails_once(monkeypatch, run_module, "copy_tokenizer", error)
    with pytest.raises(raised) as caught:
        train(configure())
    assert caught.value.exit_code == code
    message = str(caught.value)
    assert "checkpoint-4" in message and "--resume" in message and "\n" not in message
    run = tmp_path / "run"
    assert damage(run / "checkpoint-4") is None and not (run / "adapter").exists()
    assert not list(run.glob(".*"))
    resumed = train(configure(), resume=True)
    expected, summary = undisturbed
    assert outcome(run) == expected
    for name in ("steps", "train_loss", "eval_loss"):
        assert getattr(resumed, name) == pytest.approx(getattr(summary, name))


@pytest.mark.parametrize("eval_steps", [2, None])  # None: after each epoch, of one step
def test_a_run_that_ends_in_its_last_evaluation_makes_up_for_it(
    configure, tmp_path, monkeypatch, eval_steps
):
    settings = {"eval_steps": eval_steps, "global_batch_size": 8 if eval_steps else 2}
    train(configure(**settings))
    run = tmp_path / "run"
    expected = outcome(run)
    evaluations = sum(loss is None for _, loss, _ in expected[1])
    real, calls = trainer_module.validation_loss, []

    def last_fails(training):
        calls.append(1)
        if len(calls) == evaluations:
            raise MemoryError
        return real(training)

    monkeypatch.setattr(trainer_module, "validation_loss", last_fails)
    with pytest.raises(IntelFTError, match="out of memory"):
        train(configure(**settings), overwrite=True)
    assert damage(run / "checkpoint-4") is None
    resumed = train(configure(**settings), resume=True)
    assert outcome(run) == expected
    assert resumed.eval_loss == min(loss for _, _, loss in expected[1] if loss is not None)
    assert damage(run / "checkpoint-4") is None


def test_early_stopping_saves_the_step_that_it_stops_at(configure, tmp_path, monkeypatch):
    settings = {"max_steps": 40, "eval_steps": 1, "save_steps": 1000, "early_stopping": 1}
    fails_once(monkeypatch, run_module, "copy_tokenizer", ValueError("no"))
    with pytest.raises(IntelFTError, match="checkpoint-"):
        train(configure(learning_rate=0.5, scheduler="constant", **settings))
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    summary = train(configure(learning_rate=0.5, scheduler="constant", **settings), resume=True)
    assert summary.steps == int(checkpoint.name.removeprefix("checkpoint-")) < 40


def test_full_fine_tuning_keeps_the_bases_generation_config(configure, tmp_path):
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps(GENERATION))
    config = configure(max_steps=1, data={"eval": None}, method={"name": "full", "r": 16})
    train(config)
    saved = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert saved == GENERATION | {"eos_token_id": saved["eos_token_id"]}
    assert set(saved["eos_token_id"]) > {1, 5} or 1 in saved["eos_token_id"]


def test_the_base_of_the_start_is_recorded(configure, bases, tmp_path, monkeypatch):
    """A base that is replaced while a run trains is not named as the adapter's base."""
    real = run_module._write_result

    def replaced(*arguments):
        shutil.copy(bases / "other" / "model.safetensors", tmp_path / "base" / "model.safetensors")
        real(*arguments)

    before = run_module.fingerprint(tmp_path / "base")
    monkeypatch.setattr(run_module, "_write_result", replaced)
    train(configure(max_steps=1))
    provenance = json.loads((tmp_path / "run" / "adapter" / "intel_ft.json").read_text())
    assert provenance["base_weights"] == before
    assert run_module.fingerprint(tmp_path / "base") != before
