"""A run over a stream that is killed and resumed ends as if it had not been."""

import shutil

from support.harness import metrics
from support.small_runs import ROWS, config_in, fill, write_rows

from intel_ft.training.run import train


def test_a_run_over_a_stream_resumes_where_it_was(bases, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        fill(folder, bases)
        write_rows(folder / "train.jsonl", ROWS * 3)
    data = {"streaming": True, "buffer": 16}
    train(config_in(whole, data=data))
    shutil.copytree(whole / "run", killed / "run")
    shutil.rmtree(killed / "run" / "adapter")
    shutil.rmtree(killed / "run" / "checkpoint-4")
    train(config_in(killed, data=data), resume=True)
    weights = [folder / "run/adapter/adapter_model.safetensors" for folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    losses = [[line.get("loss") for line in metrics(f / "run")] for f in (whole, killed)]
    assert losses[0] == losses[1]
