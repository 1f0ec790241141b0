"""Mistakes of users and gaps of machines, through the command line.

Each gives an exit code, one line that names the problem and the remedy, and no half-written files.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.harness import MODEL, Result, contents, run, shortest_examples, write_config

from intel_ft.files import damage

CHECKPOINT = 2_050_000  # bytes that a checkpoint of these runs takes, about


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good config.yaml with its train.jsonl: each test breaks one thing."""
    shortest_examples(tmp_path / "train.jsonl", 0, 24)
    write_config(tmp_path / "config.yaml")
    return tmp_path


def _assert_one_line(result: Result, code: int, *parts: str) -> None:
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert result.last_line.startswith("error: "), result.err
    assert sum(line.startswith("error: ") for line in result.err.splitlines()) == 1, result.err
    for part in parts:
        assert part in result.last_line
    assert result.out == ""


def _refused(folder: Path, code: int, *parts: str, **options: Any) -> None:
    """`train` says no with this code and a line with these parts, and leaves `folder` as it was."""
    arguments = options.pop("arguments", ())
    before = _visible(folder)
    _assert_one_line(run("train", "config.yaml", *arguments, cwd=folder, **options), code, *parts)
    assert _visible(folder) == before


def _visible(folder: Path) -> dict[str, bytes]:
    """The files under `folder`, but for what the harness itself keeps there."""
    found = contents(folder)
    return {name: data for name, data in found.items() if not name.startswith(".streams/")}


def _rows(folder: Path) -> list[str]:
    return (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()


def _write_rows(folder: Path, rows: list[str]) -> None:
    (folder / "train.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def test_the_config_that_each_test_breaks_is_good(folder):
    result = run("train", "config.yaml", cwd=folder)
    assert result.code == 0, result.err
    assert (folder / "out/adapter/adapter_model.safetensors").is_file()


# Data


@pytest.mark.parametrize("name", ["absent.jsonl", "absent-folder", "./no/such/file.csv"])
def test_no_such_data_file(name, folder):
    _refused(folder, 2, name, "no such file", arguments=[f"data.train={name}"])


def test_no_such_eval_file(folder):
    _refused(folder, 2, "absent.jsonl", "no such file", arguments=["data.eval=absent.jsonl"])


def test_no_such_config(tmp_path):
    result = run("train", "absent.yaml", cwd=tmp_path)
    _assert_one_line(result, 2, "absent.yaml", "no such config file")


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_empty_dataset(text, folder):
    name = "empty.json" if text == "[]" else "empty.jsonl"
    (folder / name).write_text(text)
    _refused(folder, 2, name, arguments=[f"data.train={name}"])


def test_broken_json_names_the_line(folder):
    rows = _rows(folder)
    rows[6] = rows[6][:-9]
    _write_rows(folder, rows)
    _refused(folder, 2, "train.jsonl", "line 7", "JSON")


@pytest.mark.parametrize("cell", ["absent", None, True])
def test_a_row_without_a_column_names_the_row(cell, folder):
    rows = _rows(folder)
    row = json.loads(rows[4])
    row["output"] = cell
    if cell == "absent":
        del row["output"]
    rows[4] = json.dumps(row)
    _write_rows(folder, rows)
    _refused(folder, 2, "train.jsonl", "row 5", "output")


def test_no_row_has_a_known_column(folder):
    _write_rows(folder, [json.dumps({"left": "a", "right": "b"})] * 8)
    _refused(folder, 2, "train.jsonl", "left", "right", "instruction")


def test_wrong_encoding(folder):
    row = json.dumps({"instruction": "Grüße", "output": "café"}, ensure_ascii=False)
    good = "\n".join(_rows(folder)[:2])
    (folder / "train.jsonl").write_bytes(good.encode() + b"\n" + row.encode("latin-1") + b"\n")
    _refused(folder, 2, "train.jsonl", "line 3", "UTF-8")


def test_too_long_an_example_names_it_and_the_ways_out(folder):
    _refused(folder, 2, "data.max_length", "data.on_long", arguments=["data.max_length=40"])


# Config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.learning_rat=1", ["train.learning_rat", "did you mean train.learning_rate"]),
        ("train.dropout=0.1", ["train.dropout", "did you mean method.dropout"]),
        ("trian.epochs=1", ["trian", "did you mean train"]),
        ("train.learning_rate=-1", ["train.learning_rate=-1", "greater than 0"]),
        ("train.learning_rate=fast", ["train.learning_rate=fast", "number"]),
        ("method.r=0", ["method.r=0"]),
        ("method.dropout=1", ["method.dropout=1", "less than 1"]),
        ("train.optimizer=adam", ["train.optimizer=adam", "adamw_torch"]),
        ("train.max_tokens_per_row=16", ["train.max_tokens_per_row", "data.max_length"]),
        ("train.early_stopping=2", ["train.early_stopping", "data.eval"]),
        ("backend.threads=100000", ["backend.threads=100000"]),
        ("method.target_modules=[nothing]", ["method.target_modules", "q_proj"]),
        ("train.epochs", ["train.epochs", "section.key=value"]),
    ],
)
def test_config_value(override, parts, folder):
    _refused(folder, 2, *parts, arguments=[override])


@pytest.mark.parametrize("text", ["model: [", "- a\n- b\n", "", "model: {}\n", "\x00"])
def test_config_is_no_config(text, folder):
    (folder / "config.yaml").write_text(text)
    _refused(folder, 2, "config.yaml")


def test_unknown_option_and_verb(folder):
    _refused(folder, 2, "--resum", arguments=["--resum"])
    _assert_one_line(run("trian", cwd=folder), 2, "trian")


@pytest.mark.parametrize(
    ("verb", "options", "parts"),
    [
        ("plan", ["--memory", "512"], ["--memory 512", "unit", "256GiB"]),
        ("plan", ["--sockets", "2"], ["--sockets", "--cpu"]),
        ("launch", ["--nodes", "4", "--dry-run"], ["--nodes 4", "--via", "--hostfile"]),
        ("launch", ["--via", "slurm", "--tune"], ["--tune", "--ranks-per-host"]),
    ],
)
def test_an_option_without_effect_or_unit(verb, options, parts, folder):
    _assert_one_line(run(verb, "config.yaml", *options, cwd=folder), 2, *parts)


# Model


@pytest.fixture
def model(folder) -> Path:
    """A copy of the model, named in the config, to be broken."""
    copy = folder / "model"
    shutil.copytree(MODEL, copy)
    write_config(folder / "config.yaml", model={"name_or_path": "model"})
    return copy


def _edit_config(model: Path, **values: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | values))


def _to_pickle(model: Path, value: object = None) -> None:
    weights = load_file(model / "model.safetensors") if value is None else value
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def test_no_such_model(folder):
    _refused(folder, 2, "./absent", arguments=["model.name_or_path=./absent"])


def test_model_folder_without_weights(model, folder):
    (model / "model.safetensors").unlink()
    _refused(folder, 2, "model", "no weights", "safetensors")


def test_model_folder_without_config(model, folder):
    (model / "config.json").unlink()
    _refused(folder, 2, "model", "config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "vit"}'])
def test_model_config_is_no_model_config(text, model, folder):
    (model / "config.json").write_text(text)
    _refused(folder, 2, "config.json")


class _WritesWhenUnpickled:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, ("pickle-ran",)


def test_pickle_weights_are_refused_unread(model, folder):
    _to_pickle(model, _WritesWhenUnpickled())
    _refused(folder, 2, "pytorch_model.bin", "pickle", "model.allow_pickle=true")
    assert not (folder / "pickle-ran").exists()


def test_pickle_weights_that_are_code_are_refused_even_when_allowed(model, folder):
    _to_pickle(model, _WritesWhenUnpickled())
    _refused(folder, 2, "model", arguments=["model.allow_pickle=true"])
    assert not (folder / "pickle-ran").exists()


def test_pickle_weights_train_where_allowed(model, folder):
    assert run("train", "config.yaml", cwd=folder).code == 0
    expected = (folder / "out/adapter/adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder / "out")
    _to_pickle(model)
    result = run("train", "config.yaml", "model.allow_pickle=true", cwd=folder)
    assert result.code == 0, result.err
    assert (folder / "out/adapter/adapter_model.safetensors").read_bytes() == expected


def test_remote_code_is_refused_and_not_run(model, folder):
    _edit_config(model, model_type="own", auto_map={"AutoConfig": "own.C"})
    (model / "own.py").write_text("import os\nos.mkdir('remote-code-ran')\n")
    _refused(folder, 2, "custom code", "model.trust_remote_code=true")
    assert not (folder / "remote-code-ran").exists()


def test_remote_code_of_a_tokenizer_is_refused_and_not_run(model, folder):
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]},
    }
    path.write_text(json.dumps(config))
    (model / "own.py").write_text("import os\nos.mkdir('remote-code-ran')\n")
    _refused(folder, 2, "model", "custom code", "model.trust_remote_code=true")
    assert not (folder / "remote-code-ran").exists()


def test_truncated_weights(model, folder):
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate((model / "model.safetensors").stat().st_size - 100)
    _refused(folder, 2, "model.safetensors", "copy it again")


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff" * 64, struct.pack("<Q", 4) + b"junk"])
def test_weights_are_no_safetensors(data, model, folder):
    (model / "model.safetensors").write_bytes(data)
    _refused(folder, 2, "model.safetensors")


def test_missing_tensors(model, folder):
    weights = load_file(model / "model.safetensors")
    lost = "model.layers.3.mlp.up_proj.weight"
    del weights[lost]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    _refused(folder, 2, "model", "not in its files", lost)


def test_tensors_of_another_shape(model, folder):
    _edit_config(model, intermediate_size=700)
    _refused(folder, 2, "model")


def test_no_tokenizer(model, folder):
    for path in model.glob("tokenizer*"):
        path.unlink()
    _refused(folder, 2, "model", "tokenizer")


def test_broken_tokenizer(model, folder):
    (model / "tokenizer.json").write_text("{")
    _refused(folder, 2, "model", "tokenizer")


# Output


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a finished run in out/."""
    folder = tmp_path_factory.mktemp("finished")
    shortest_examples(folder / "train.jsonl", 0, 24)
    write_config(folder / "config.yaml")
    result = run("train", "config.yaml", cwd=folder)
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def done(finished, tmp_path) -> Path:
    """A copy of it."""
    ignored = shutil.ignore_patterns(".streams")
    return shutil.copytree(finished, tmp_path / "done", ignore=ignored)


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
@pytest.mark.parametrize(
    "name", ["thesis.tex", "checkpoint-notes.txt", "adapter.zip", "config.yaml.bak", ".git"]
)
def test_foreign_files_are_never_deleted(name, flags, done):
    (done / "out" / name).write_text("mine")
    _refused(done, 2, "out", name, arguments=flags)


def test_a_folder_that_is_no_run(folder):
    (folder / "out").mkdir()
    (folder / "out/thesis.tex").write_text("mine")
    _refused(folder, 2, "out", "thesis.tex", arguments=["--overwrite"])


def test_output_is_a_file(folder):
    (folder / "out").write_text("mine")
    _refused(folder, 2, "out", "file", arguments=["--overwrite"])
    _refused(folder, 2, "out/below", arguments=["output.directory=out/below"])


def test_a_finished_run_is_left_alone(done):
    _refused(done, 2, "out", "--overwrite")
    _refused(done, 2, "out", "--overwrite", arguments=["--resume"])
    _refused(done, 2, "--resume", "--overwrite", arguments=["--resume", "--overwrite"])


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=0",
        "data.train=absent.jsonl",
        "model.name_or_path=./absent",
        "method.target_modules=[nothing]",
        "backend.threads=100000",
    ],
)
def test_overwriting_with_bad_input_keeps_the_old_run(override, done):
    _refused(done, 2, arguments=[override, "--overwrite"])


# Disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder on a file system of 7 MiB of its own; a checkpoint of these runs takes 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system may not be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_keeps_the_last_checkpoint(folder, small_disk):
    arguments = ("train", "config.yaml", "train.max_steps=10", "train.keep_checkpoints=9")
    assert run(*arguments, cwd=folder).code == 0
    expected = (folder / "out/adapter/adapter_model.safetensors").read_bytes()
    arguments += (f"output.directory={small_disk / 'out'}",)
    result = run(*arguments, cwd=folder)
    out = small_disk / "out"
    saved = sorted(path.name for path in out.glob("checkpoint-*"))
    assert saved and len(saved) < 5, saved
    _assert_one_line(result, 1, "checkpoint", f"{saved[-1]} is intact", "--resume", "space")
    assert all(damage(out / name) is None for name in saved)
    assert not list(out.rglob(".*")) and not (out / "adapter").exists()
    # Still full: resuming fails in the same way and does no harm.
    _assert_one_line(run(*arguments, "--resume", cwd=folder), 1, f"{saved[-1]} is intact")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    result = run(*arguments, "--resume", cwd=folder)
    assert result.code == 0, result.err
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == expected


def test_disk_full_before_the_first_checkpoint(folder, small_disk):
    (small_disk / "ballast").write_bytes(bytes(6 * 2**20))
    out = small_disk / "out"
    result = run("train", "config.yaml", f"output.directory={out}", cwd=folder)
    _assert_one_line(result, 1, "checkpoint-2", "space")
    assert not list(out.glob("*checkpoint*"))


def test_disk_full_at_the_records(folder, small_disk):
    out = small_disk / "out"
    with (small_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    result = run("train", "config.yaml", f"output.directory={out}", cwd=folder)
    _assert_one_line(result, 1, str(out), "disk is full")


def test_disk_full_at_the_final_adapter(folder, small_disk):
    """Two checkpoints fit, the adapter after them does not; nothing trained is lost."""
    out = small_disk / "out"
    arguments = ("train", "config.yaml", f"output.directory={out}")
    (small_disk / "ballast").write_bytes(bytes(7 * 2**20 - 2 * CHECKPOINT - 2**19))
    result = run(*arguments, cwd=folder)
    _assert_one_line(result, 1, "disk is full", "--resume")
    assert damage(out / "checkpoint-4") is None
    assert not (out / "adapter").exists() and not list(out.rglob(".*"))
    (small_disk / "ballast").unlink()
    result = run(*arguments, "--resume", cwd=folder)
    assert result.code == 0, result.err


# Memory


def _giant(model: Path, mib: int, hidden: int) -> None:
    """Turn the model into one of `mib` MiB of zeros, in a file that takes no space on disk."""
    layers = mib * 2**20 // (2 * 12 * hidden * hidden)
    shapes = {"model.embed_tokens.weight": [4096, hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for part in ("q", "k", "v", "o"):
            shapes[f"{name}.self_attn.{part}_proj.weight"] = [hidden, hidden]
        shapes[f"{name}.mlp.gate_proj.weight"] = [hidden * 8 // 3, hidden]
        shapes[f"{name}.mlp.up_proj.weight"] = [hidden * 8 // 3, hidden]
        shapes[f"{name}.mlp.down_proj.weight"] = [hidden, hidden * 8 // 3]
        shapes[f"{name}.input_layernorm.weight"] = [hidden]
        shapes[f"{name}.post_attention_layernorm.weight"] = [hidden]
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    _edit_config(
        model,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )


def test_a_model_larger_than_memory_is_refused_unread(model, folder):
    _giant(model, 2000 * 1024, hidden=32768)
    command = ("train", "config.yaml", "--json")
    result = run(*command, cwd=folder, seconds=30)
    _assert_one_line(result, 3, "out of memory", "GiB", "smaller model", "train.max_tokens_per_row")
    assert not (folder / "out").exists()


def test_an_allocation_that_fails_at_start(model, folder):
    """The estimate, 1,300 MiB of fp32 weights, lets it pass; the file mapped beside it does not."""
    _giant(model, 750, hidden=2048)
    arguments = ("train", "config.yaml", "model.dtype=float32")
    result = run(*arguments, cwd=folder, memory=2200 * 2**20)
    _assert_one_line(result, 3, "out of memory while training", "smaller model")
    assert not (folder / "out").exists()


# Packages


def _run_without(package: str, folder: Path, *arguments: str) -> Result:
    """Run `intel-ft ARGUMENTS` where `package` cannot be imported, as if it were not installed.

    In a new process: those of the harness have imported the packages already.
    """
    hidden = folder / ".streams/hidden"
    hidden.mkdir(parents=True)
    (hidden / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "intel_ft", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(hidden), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("verb", "package"),
    [("train", "torch"), ("validate", "datasets"), ("validate", "jinja2"), ("validate", "yaml")],
)
def test_a_missing_package_is_named_and_not_blamed_on_the_data(verb, package, folder):
    before = _visible(folder)
    result = _run_without(package, folder, verb, "config.yaml")
    _assert_one_line(result, 3, package, "pip install" if package != "jinja2" else "install")
    assert "train.jsonl" not in result.last_line
    assert _visible(folder) == before


def test_validate_offline_names_a_missing_package(folder):
    """It does not pass for data that is absent from this machine."""
    result = _run_without("datasets", folder, "validate", "config.yaml", "--offline")
    _assert_one_line(result, 3, "datasets", "pip install")


# The rest


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"PMI_SIZE": "4"}, "PMI_RANK is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "x"}, "COMM_WORLD_RANK is x"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "rank 5 of 2"),
        ({"WORLD_SIZE": "1", "PMI_SIZE": "2", "PMI_RANK": "0"}, "MPICH set PMI_SIZE=2"),
        ({"WORLD_SIZE": "4", "RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
    ],
)
def test_a_world_that_cannot_be(env, reason, folder):
    """A copy that does not know of the others would train a model of its own."""
    _refused(folder, 3, reason, env=env)


def test_ranks_that_do_not_come(folder):
    env = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    _refused(folder, 1, "could not join", arguments=["backend.timeout=2"], env=env)


@pytest.mark.parametrize("key", ["model.name_or_path", "data.train"])
def test_hub_id_without_network(key, folder):
    env = {"HF_HOME": str(folder / ".streams/hf")}
    _refused(folder, 3, "nobody/nothing", "Hub", arguments=[f"{key}=nobody/nothing"], env=env)


def _diverging(folder: Path, alpha: float) -> Result:
    write_config(
        folder / "config.yaml",
        method={"alpha": alpha},
        train={"learning_rate": 10, "scheduler": "constant", "max_steps": 8, "save_steps": 1},
    )
    return run("train", "config.yaml", cwd=folder)


# With alpha 1e18 the first step leaves weights under which nothing is finite any more; with 1e38
# the first gradient is not.
@pytest.mark.parametrize(("alpha", "what"), [(1e18, "loss"), (1e38, "gradient")])
def test_a_run_that_diverges(alpha, what, folder):
    _assert_one_line(_diverging(folder, alpha), 1, what, "step", "train.learning_rate")
    assert not (folder / "out/adapter").exists()
    for checkpoint in (folder / "out").glob("checkpoint-*"):
        weights = load_file(checkpoint / "adapter_model.safetensors")
        assert all(value.isfinite().all() for value in weights.values())
