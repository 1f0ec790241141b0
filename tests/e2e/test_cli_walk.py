"""The verbs of the README, as a user runs them: each in its own process.

Every verb but `demo`, which `make demo` runs, is run as the installed script; further runs are
forked from the preloaded server.
"""

import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.harness import run, shortest_examples

from intel_ft.assets import resolve

SCRIPT = Path(sys.executable).parent / "intel-ft"
FORMATS = {
    "alpaca": (
        "rows.json",
        [
            {"instruction": f"Name {n} rivers.", "input": "In Europe." * (n % 2), "output": "Rhine"}
            for n in range(6)
        ],
    ),
    "messages": (
        "rows.jsonl",
        [
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": f"What is {n}?"},
                    {"role": "assistant", "content": "A number."},
                    {"role": "user", "content": "And then?"},
                    {"role": "assistant", "content": f"{n + 1}"},
                ]
            }
            for n in range(6)
        ],
    ),
    "dolly": (
        "rows.jsonl",
        [
            {"instruction": f"What is {n}?", "context": "Numbers.", "response": "A number.",
             "category": "closed_qa"}
            for n in range(6)
        ],
    ),
    "prompt_completion": (
        "rows.jsonl",
        [{"prompt": f"def f{n}(x):", "completion": f"\n    return x + {n}\n"} for n in range(6)],
    ),
    "question_answer": (
        "rows.csv",
        [{"question": f"What, or who, is {n}?", "answer": 'The "number"'} for n in range(6)],
    ),
    "text": ("rows.txt", [f"def f{n}(x): return x + {n}" for n in range(6)]),
}  # fmt: skip


def intel_ft(*arguments, code=0, stdin=None, cwd=None) -> SimpleNamespace:
    """Run the script in `arguments`' order; its output and exit code, which must be `code`."""
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)],
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        # Threads that spin while they wait for each other crawl on a machine with other work.
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return SimpleNamespace(stdout=done.stdout, stderr=done.stderr)


def only_object(text: str) -> dict:
    """The one JSON object that `text` is, and nothing else."""
    value = json.loads(text)
    assert isinstance(value, dict)
    assert text.count("\n") == 1
    return value


def write_rows(path: Path, rows) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        quoted = (
            ",".join('"' + value.replace('"', '""') + '"' for value in line)
            for line in [list(rows[0]), *(list(row.values()) for row in rows)]
        )
        path.write_text("\n".join(quoted) + "\n")
    else:
        path.write_text("\n\n".join(rows) + "\n")
    return path


def write_config(folder: Path, source: Path, **data) -> Path:
    values = {
        "model": {"name_or_path": "tiny-python-llama"},
        "data": {"train": str(source)} | data,
        "train": {"global_batch_size": 4, "learning_rate": 0.002},
        "output": {"directory": str(folder / "run")},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def forked(*arguments, code=0, stdin="", cwd) -> SimpleNamespace:
    """Like `intel_ft`, without the seconds that a fresh process takes to import its libraries."""
    done = run(*arguments, cwd=cwd, stdin=stdin, seconds=300, env={"OMP_NUM_THREADS": "1"})
    assert done.code == code, f"{done.out}\n{done.err}"
    assert "Traceback" not in done.err
    return SimpleNamespace(stdout=done.out, stderr=done.err)


# -- --help ----------------------------------------------------------------------------------------


def cpu_seconds(*arguments) -> float:
    """Processor time of one run: what a machine with other work does not blur."""
    process = subprocess.Popen(
        [SCRIPT, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_answers_within_half_a_second() -> None:
    intel_ft("--help")  # compiles what a fresh install has not
    assert statistics.median(cpu_seconds("--help") for _ in range(5)) < 0.5


def test_without_a_verb_the_help_is_shown() -> None:
    assert intel_ft(code=2).stderr.startswith("Usage: intel-ft [OPTIONS]")
    assert intel_ft("bench", code=2).stderr.startswith("Usage: intel-ft bench")


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    text = intel_ft("--help").stdout
    for verb in ("validate", "train", "eval", "merge", "export", "generate", "chat", "demo"):
        assert f" {verb} " in text
        assert intel_ft(verb, "--help").stdout.startswith("Usage: intel-ft " + verb)
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, intel_ft.cli.main; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "transformers", "openvino", "datasets", "numpy"} & set(loaded)


def test_unknown_verbs_options_and_files_are_bad_input(tmp_path) -> None:
    for arguments in (["tarin"], ["train", "--nonsense", "x"], ["train", tmp_path / "none.yaml"]):
        done = forked(*arguments, code=2, cwd=tmp_path)
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert "none.yaml: no such config file" in done.stderr


# -- train on every format -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_train_takes_every_format(name, tmp_path) -> None:
    file, rows = FORMATS[name]
    config = write_config(tmp_path, write_rows(tmp_path / file, rows))
    done = run("train", config, "train.max_steps=2", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    summary = only_object(done.out)
    assert summary["steps"] == 2
    assert Path(summary["adapter"]) == tmp_path / "run" / "adapter"
    assert 0 < summary["train_loss"] < 20
    assert f"format {name}: " in done.err
    assert "6 examples" in done.err
    assert "template " in done.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "checkpoint-2" / "manifest.json").is_file()


def test_nested_instances_are_refused_with_what_to_do(tmp_path) -> None:
    rows = [
        {
            "id": f"seed_task_{n}",
            "name": "rivers",
            "instruction": f"Name {n} rivers.",
            "instances": [{"input": "", "output": "Rhine"}],
            "is_classification": False,
        }
        for n in range(3)
    ]
    path = write_rows(tmp_path / "seed_tasks.jsonl", rows)
    done = run("train", write_config(tmp_path, path), "train.max_steps=2", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert f"error: {path}" in done.err
    assert "column instances is nested: flatten" in done.err
    assert not (tmp_path / "run").exists()


# -- the walk --------------------------------------------------------------------------------------

openvino = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openvino_genai", "nncf", "optimum")),
    reason="needs the openvino extra",
)


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> SimpleNamespace:
    """train -> merge -> export, once for the tests below."""
    root = tmp_path_factory.mktemp("walk")
    rows = [
        json.loads(line)
        for line in Path(resolve("docstring-to-python/heldout.jsonl")).read_text().splitlines()
    ]
    short = sorted(rows, key=lambda row: sum(len(str(value)) for value in row.values()))[:24]
    data = write_rows(root / "data.jsonl", short)
    config = write_config(root, data, template="tokenizer", system_prompt="Write Python.")
    done = intel_ft("train", config, "train.max_steps=12", "train.learning_rate=5e-3", "--json")
    return SimpleNamespace(
        root=root, data=data, config=config, run=root / "run", summary=only_object(done.stdout)
    )


@pytest.fixture(scope="module")
def merged(walk) -> Path:
    intel_ft("merge", walk.run, "--output", walk.root / "merged", "--json")
    return walk.root / "merged"


@pytest.fixture(scope="module")
def ir(walk, merged) -> Path:
    done = intel_ft("export", merged, "-o", walk.root / "ir", "--format", "int8", "--json")
    only_object(done.stdout)
    return walk.root / "ir"


def evaluated(model, walk) -> dict:
    done = forked("eval", model, "--data", walk.data, "--json", cwd=walk.root)
    return only_object(done.stdout)


def test_validate_reports_what_train_would_read(walk) -> None:
    facts = only_object(intel_ft("validate", walk.config, "--json").stdout)
    assert facts["train_examples"] == 24
    assert facts["template"] == "tokenizer"
    assert 0 < facts["supervised_tokens"] < facts["train_tokens"]
    assert 0 < facts["shared_prefix_share"] < 1  # the template's first words


def test_a_finished_run_is_not_trained_over(walk) -> None:
    before = (walk.run / "metrics.jsonl").read_text()
    done = forked("train", walk.config, code=2, cwd=walk.root)
    assert "pass --overwrite to train again" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (walk.run / "metrics.jsonl").read_text() == before


@openvino
def test_the_tuned_model_is_better_and_stays_so_through_merge_and_export(walk, merged, ir) -> None:
    base = only_object(
        intel_ft(
            "eval", "tiny-python-llama", "--data", walk.data, "--template", "tokenizer",
            "--system", "Write Python.", "--json",
        ).stdout
    )  # fmt: skip
    tuned, whole, int8 = (evaluated(model, walk) for model in (walk.run, merged, ir))
    assert tuned["loss"] < 0.95 * base["loss"]
    assert whole["loss"] == pytest.approx(tuned["loss"], rel=0.01)
    assert int8["perplexity"] == pytest.approx(whole["perplexity"], rel=0.02)


@openvino
def test_generate_answers_from_the_ir_as_text_and_as_json(ir, tmp_path) -> None:
    prompt = "Write the Python function `first(items)`."
    done = intel_ft("generate", ir, prompt, "--max-new-tokens", 16)
    assert done.stdout.strip()
    command = ["generate", ir, "-", "--max-new-tokens", 16, "--json"]
    answer = only_object(forked(*command, stdin=prompt, cwd=tmp_path).stdout)
    assert answer["text"].strip() == done.stdout.strip()
    assert 1 <= answer["new_tokens"] <= 16
    assert "standard input" in forked("generate", ir, "-", code=2, cwd=tmp_path).stderr


@openvino
def test_chat_from_a_pipe_answers_and_leaves_at_exit(ir) -> None:
    done = intel_ft("chat", ir, "--max-new-tokens", 12, stdin="hello\nexit\nnot read\n")
    assert done.stdout.count("Ask > ") == 2
    first, second = done.stdout.split("Ask > ")[1:]
    assert first.strip()
    assert not second.strip()


@openvino
def test_the_demo_prints_one_object(tmp_path) -> None:
    # A local file hides the shipped one of its name: the demo measures four models on 40 examples.
    (tmp_path / "docstring-to-python").mkdir()
    for name, start, count in (("train", 0, 128), ("heldout", 128, 40)):
        file = tmp_path / f"docstring-to-python/{name}.jsonl"
        shortest_examples(file, start, start + count)
    command = ["demo", "--max-steps", 8, "--json", "--output", tmp_path / "demo"]
    done = forked(*command, cwd=tmp_path)
    report = only_object(done.stdout)
    assert {
        "heldout_loss_base",
        "heldout_loss_tuned",
        "perplexity_bf16",
        "perplexity_int8",
        "tokens_per_s",
        "mfu",
        "seconds",
        "generated",
    } <= set(report)
    assert report["heldout_loss_tuned"] < report["heldout_loss_base"]
    assert report["perplexity_int8"] == pytest.approx(report["perplexity_bf16"], rel=0.02)
    assert report["tokens_per_s"] > 0
    assert 0 < report["mfu"] < 1
    assert report["generated"].strip()
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"run", "merged", "openvino"}
    again = forked(*command, cwd=tmp_path, code=2)
    assert again.stdout == ""
    assert "is not empty" in again.stderr
