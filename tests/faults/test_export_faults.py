"""An export that is killed, out of disk space or given mismatched input leaves no output."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.export_fixtures import make_adapter, save_after_each_step
from support.harness import run, start

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from safetensors.torch import load_file, save_file

from intel_ft.artifacts.provenance import Provenance
from intel_ft.errors import UserError
from intel_ft.export.export import export
from intel_ft.models.load import fingerprint


@pytest.fixture
def adapter(page_base, tmp_path) -> Path:
    """A run's adapter that says what it was trained on."""
    folder = make_adapter(page_base, tmp_path / "run" / "adapter")
    Provenance("adapter", str(page_base), None, "alpaca", None, "0", fingerprint(page_base)).save(
        folder
    )
    return folder


def test_killed_at_any_moment(page_base, adapter, tmp_path) -> None:
    arguments = ("export", "run", "--format", "int8")
    whole = run(*arguments, "-o", "whole", cwd=tmp_path, seconds=400)
    assert whole.code == 0, whole.err
    expected = (tmp_path / "whole" / "openvino_model.bin").read_bytes()
    # Each kill waits for a stage to exist, complete or partial, and then for a random moment.
    chance = random.Random(7)
    work = tmp_path / ".ir.export"
    for sign in ("merged", ".fp16.partial", "fp16", "candidates/int8.json"):
        running = start(*arguments, "-o", "ir", cwd=tmp_path)
        seen = running.wait_until((work / sign).exists, seconds=400)
        if seen and sign != "candidates/int8.json":
            running.wait_until(lambda: chance.random() < 0.05, seconds=400)
        running.kill(signal.SIGKILL)
        code = running.wait(400).code
        assert code in (-signal.SIGKILL, 0)
        if (tmp_path / "ir").exists():  # the kill came after the name was given
            break
        assert code != 0 and work.is_dir()
    assert sign.startswith("candidates")  # the others come long before the end
    late = {work.name} if code and (tmp_path / "ir").exists() else set()
    if not (tmp_path / "ir").exists():
        result = run(*arguments, "-o", "ir", cwd=tmp_path, seconds=400)
        assert result.code == 0 and "resuming" in result.err, result.err
    assert (tmp_path / "ir" / "openvino_model.bin").read_bytes() == expected
    assert json.loads((tmp_path / "ir" / "export.json").read_text())["format"] == "int8"
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"run", "whole", "ir", ".streams", *late}, left


@pytest.fixture
def small_disk(request, tmp_path) -> Iterator[Path]:
    """A separate file system, too small for all that an export writes (about 1 MB)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", disk]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system may not be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize(
    ("small_disk", "more"),
    [
        ("300k", ["int8"]),
        ("700k", ["int8"]),
        # Enough for the export, but not for the state of a recovery.
        ("1500k", ["int4", "--recover", "--calibration", "page.jsonl"]),
    ],
    indirect=["small_disk"],
)
def test_full_disk(page_base, small_disk, tmp_path, more) -> None:
    (tmp_path / "page.jsonl").write_text('{"prompt": "def", "completion": " sum(values):"}\n')
    arguments = ("export", page_base, "-o", small_disk / "ir", "--format", *more)
    result = run(*arguments, cwd=tmp_path, seconds=400, before=save_after_each_step)
    assert result.code == 1, result.err
    assert "the disk is full" in result.last_line and "no partial output" in result.last_line
    assert "Traceback" not in result.err
    assert list(small_disk.iterdir()) == []


def _refused(source: Path, tmp_path: Path, *words: str, **named: str) -> None:
    with pytest.raises(UserError) as caught:
        export(str(source), tmp_path / "ir", "int8", **named)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not [path.name for path in tmp_path.iterdir() if "ir" in path.name]


def test_a_corrupt_adapter(adapter, tmp_path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    _refused(adapter, tmp_path, str(weights), "damaged")


def test_an_adapter_of_another_base_of_the_same_shape(page_base, adapter, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in page_base.iterdir():
        os.link(path, other / path.name)
    (other / "model.safetensors").unlink()
    tensors = {
        name: tensor * 1.5 for name, tensor in load_file(page_base / "model.safetensors").items()
    }
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    _refused(adapter, tmp_path, str(adapter), "was not trained on", str(other), base=str(other))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(page_base, adapter, tmp_path, value) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = sorted(tensors)[3]
    tensors[name][0, 0] = value
    save_file(tensors, adapter / "adapter_model.safetensors")
    _refused(adapter, tmp_path, name, "NaN or infinity")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in page_base.iterdir():
        os.link(path, broken / path.name)
    (broken / "model.safetensors").unlink()
    tensors = load_file(page_base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 2] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    _refused(broken, tmp_path, "model.layers.1.mlp.up_proj.weight", "NaN or infinity")


def test_another_tokenizer(page_base, adapter, tmp_path) -> None:
    path = adapter / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (300, 301))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values))
    _refused(adapter, tmp_path, str(adapter), "tokenizer differs", str(page_base))


def test_the_command_line_says_it_in_a_line(adapter, tmp_path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    result = run("export", "run", "-o", "ir", "--set", "samples=2", cwd=tmp_path, seconds=400)
    assert result.code == 2 and result.last_line.startswith("error: "), result.err
    assert "Traceback" not in result.err
    result = run("export", "run", "-o", "ir", "--max-ppl-increase", "1%", cwd=tmp_path, seconds=400)
    assert result.code == 2 and "no validation set" in result.last_line, result.err
