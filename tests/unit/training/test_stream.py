"""A run over a stream: killed and resumed it ends as if it had not been, and on its rows only."""

import shutil
from dataclasses import dataclass, field

import pytest
from support.harness import metrics
from support.small_runs import FLIPPED, ROWS, config_in, fill, write_rows

from intel_ft.distributed.world import World
from intel_ft.errors import UserError
from intel_ft.training import run as training_run
from intel_ft.training.run import train

STREAM = {"streaming": True, "buffer": 16}  # two steps, then two over eight rows and the first ones


@pytest.fixture(scope="module")
def whole(bases, tmp_path_factory):
    """A run of four steps over two buffers."""
    folder = tmp_path_factory.mktemp("whole")
    fill(folder, bases)
    write_rows(folder / "train.jsonl", ROWS * 3)
    train(config_in(folder, data=STREAM, save_steps=1, keep_checkpoints=4))
    return folder


def killed_after(step, whole, folder):
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "run" / "adapter")
    for later in range(step + 1, 5):
        shutil.rmtree(folder / "run" / f"checkpoint-{later}")
    return config_in(folder, data=STREAM)


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_over_a_stream_resumes_where_it_was(whole, tmp_path, step):
    train(killed_after(step, whole, tmp_path), resume=True)
    weights = [folder / "run/adapter/adapter_model.safetensors" for folder in (whole, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    losses = [[line.get("loss") for line in metrics(f / "run")] for f in (whole, tmp_path)]
    assert losses[0] == losses[1]


def test_rows_that_were_edited_after_they_were_trained_on_are_refused(whole, tmp_path):
    config = killed_after(3, whole, tmp_path)
    write_rows(tmp_path / "train.jsonl", [*ROWS * 2, *FLIPPED])
    with pytest.raises(UserError, match=r"streamed rows 17 to 32 differ .* --overwrite"):
        train(config, resume=True)


@dataclass(frozen=True)
class Compared(World):
    """One rank that notes what it would compare with the others."""

    facts: list[dict[str, str]] = field(default_factory=list)

    def require_same(self, facts, remedies=None):
        self.facts.append(dict(facts))


def test_every_buffer_is_compared_between_ranks(whole, tmp_path, monkeypatch):
    world = Compared()
    monkeypatch.setattr(training_run.World, "detect", lambda: world)
    train(killed_after(2, whole, tmp_path), resume=True)
    assert [name for facts in world.facts for name in facts if "streamed" in name] == [
        "streamed rows 17 to 32"
    ]
