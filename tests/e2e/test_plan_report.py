"""`plan`, `train` and `report` of the same config, as a user runs them."""

import json

import pytest
from support.harness import MODEL, installed, metrics, run, shortest_examples, write_config

from intel_ft.files import write_json

CPU = ["--cpu", "8480+", "--memory", "64GiB"]  # so that nothing has to be measured


def test_plan_foretells_the_run_and_report_shows_it(tmp_path) -> None:
    shortest_examples(tmp_path / "train.jsonl", 0, 400)
    train = {"global_batch_size": 64, "max_tokens_per_row": 4096, "max_steps": 4}
    write_config(tmp_path / "config.yaml", train=train, model={"name_or_path": str(MODEL)})
    planned = run("plan", "config.yaml", "--json", cwd=tmp_path)
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)
    # A fresh process: of the pages that a fork shares only those it touches count as its memory.
    trained = installed("train", "config.yaml", cwd=tmp_path)
    assert trained.code == 0, trained.err
    lines = metrics(tmp_path / "out")
    # The plan is of the same steps, and its memory is that of the run.
    assert plan["run"]["steps"] == len(lines) == 4
    assert plan["step"]["tokens"] == sum(line["tokens"] for line in lines) / 4
    assert plan["step"]["supervised_tokens"] == sum(x["supervised_tokens"] for x in lines) / 4
    assert plan["memory"]["layout"] == (
        "prepacked" if "prepack = on" in trained.err else "as loaded"
    )
    real = max(line["rss_gib"] for line in lines)
    # Four steps fragment memory less than a longer run does, for which the plan is made.
    assert plan["memory"]["total"] == pytest.approx(real, rel=0.15)
    saved = sum(f.stat().st_size for f in (tmp_path / "out" / "checkpoint-4").iterdir())
    assert plan["checkpoint"]["each"] * 2**30 == pytest.approx(saved, rel=0.1)

    reported = run("report", "out", "--json", cwd=tmp_path)
    assert reported.code == 0, reported.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert json.loads(reported.out)["bytes"] == len(page.encode())
    assert "example lengths, train" in page
    assert "<td>400</td>" in page
    assert "no evaluation" in page
    assert "Samples" not in page
    options = ("--samples", "2", "--max-new-tokens", "12", "--examples", "2")
    answered = run("report", "out", *options, cwd=tmp_path)
    assert answered.code == 0, answered.err
    samples = (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads((tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert len(samples) == 2
    assert json.loads(samples[0])["prompt"] == first["instruction"]
    assert all(json.loads(line)["before"] for line in samples)
    shown = (tmp_path / "out" / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    parts = [json.loads(line)["parts"] for line in shown]
    assert len(parts) == 2
    assert first["instruction"] in "".join(text for text, trained in parts[0] if not trained)
    assert first["output"] in "".join(text for text, trained in parts[0] if trained)
    assert "Samples" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    # A run's folder with a report in it is still a run's folder.
    again = run("train", "config.yaml", "--overwrite", "train.max_steps=1", cwd=tmp_path)
    assert again.code == 0, again.err
    both = run("report", "out", "out", "-o", "both.html", cwd=tmp_path)
    assert both.code == 0, both.err
    assert (tmp_path / "both.html").stat().st_size > 10_000


def test_plan_without_weights_on_a_cluster(tmp_path) -> None:
    shape = json.loads((MODEL / "config.json").read_text())
    (tmp_path / "shape").mkdir()
    write_json(tmp_path / "shape" / "config.json", shape)
    write_config(
        tmp_path / "config.yaml", model={"name_or_path": "shape"}, backend={"threads": "auto"}
    )
    cluster = [*CPU, "--nodes", "4", "--ranks", "2", "--watts", "700", "--examples", "1000"]
    done = run("plan", "config.yaml", *cluster, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "4 nodes of 56 cores of 8480+, 8 ranks in total, 28 threads each" in done.out
    assert "kWh" in done.out
    table = ["--sweep", "nodes", "--values", "1,2", "--plot", "nodes.svg", "--markdown"]
    done = run("plan", "config.yaml", *cluster, *table, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.startswith("| nodes | GiB per rank | fits | step s |")
    assert (tmp_path / "nodes.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["plan", "config.yaml", "--cpu", "486", "--memory", "1GiB"], 2, "8480+"),
        (["plan", "config.yaml", "--cpu", "8480+"], 2, "--memory"),
        (["plan", "config.yaml", *CPU, "--memory", "much"], 2, "256GiB"),
        (["plan", "config.yaml", "--values", "1,2"], 2, "--sweep"),
        (["plan", "config.yaml", *CPU, "backend.threads=57"], 2, "56 cores"),
        (["plan", "config.yaml", *CPU, "model.name_or_path=some/where"], 3, "Hub"),
        (["plan", "none.yaml"], 2, "no such config file"),
        (["report", "nowhere"], 2, "no such run folder"),
        (["report", "a", "b"], 2, "-o"),
        (["report", ".", "-o", "."], 2, "is a folder"),
        (["report", ".", "--samples", "1"], 2, "has not finished"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, code, part) -> None:
    write_config(tmp_path / "config.yaml")
    done = run(*arguments, cwd=tmp_path)
    assert done.code == code, done.err
    assert done.out == ""
    assert done.last_line.startswith("error: ")
    assert part in done.last_line
    assert "Traceback" not in done.err
