"""IPEX is imported only where it can work: anywhere else a run ends in one line before that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.harness import write_config

from intel_ft.backends.ipex import mismatch

FATAL = "import os\nos._exit(77)\n"  # as bad as its own os.exit, and unmistakable


@pytest.mark.parametrize(
    ("ipex", "torch", "part"),
    [
        (None, "2.8.0", "intel_extension_for_pytorch is not installed"),
        ("2.8.0", "2.13.0+cpu", "found 2.8.0 and 2.13.0+cpu"),
        ("2.7.0", "2.7.1", "needs intel_extension_for_pytorch 2.8 and torch 2.8"),
        ("2.8.0", None, "found 2.8.0 and None"),
    ],
)
def test_other_versions_are_named(ipex, torch, part):
    assert part in str(mismatch(ipex, torch))


@pytest.mark.parametrize("torch", ["2.8.0", "2.8.0+cpu", "2.8.1+cu128"])
def test_any_torch_of_its_release_will_do(torch):
    assert mismatch("2.8.0+cpu", torch) is None


@pytest.mark.parametrize("verb", ["train", "validate"])
def test_a_mismatch_is_one_line_and_nothing_of_it_is_imported(verb, tmp_path):
    package, metadata = (
        tmp_path / "site" / f"intel_extension_for_pytorch{suffix}"
        for suffix in ("", "-2.6.0.dist-info")
    )
    for folder in (package, metadata):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text(FATAL)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: intel_extension_for_pytorch\nVersion: 2.6.0\n"
    )
    write_config(tmp_path / "config.yaml", backend={"name": "ipex"})
    path = f"{package.parent}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [Path(sys.executable).with_name("intel-ft"), verb, "config.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert "found 2.6.0 and" in line and "make setup-ipex" in line
    assert not (tmp_path / "out").exists()
