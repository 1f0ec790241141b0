"""Packages that are installed but not wanted stay out of a process."""

import subprocess
import sys

import pytest

from intel_ft import optional_packages


def _prints_an_empty_line(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_peft_comes_without_what_nothing_uses():
    pytest.importorskip("sklearn")
    program = (
        "import gc, sys\n"
        "import transformers\n"  # a user's own program may have imported it before
        "from intel_ft.optional_packages import import_peft\n"
        "import_peft()\n"
        "frozen = gc.get_freeze_count()\n"
        "import_peft()\n"  # as a second run of this process
        "assert 0 < frozen == gc.get_freeze_count()\n"
        "import peft, intel_ft.training.run\n"
        "unwanted = 'sklearn', 'scipy', 'bitsandbytes', 'torch._inductor.compile_fx'\n"
        "print(*(name for name in unwanted if name in sys.modules))\n"
        "import sklearn  # and what is wanted later can still be imported\n"
    )
    _prints_an_empty_line(program)


def test_the_trainer_comes_without_datasets_until_it_is_given_some():
    program = (
        "import sys\n"
        "from intel_ft.optional_packages import import_peft, import_trainer\n"
        "import_peft()\n"
        "import_trainer()\n"
        "import intel_ft.training.run\n"
        "print(*(name for name in ('datasets', 'pandas', 'pyarrow') if name in sys.modules))\n"
        "from transformers import trainer\n"
        "from datasets import Dataset\n"
        "assert trainer.is_datasets_available() and trainer.datasets.Dataset is Dataset\n"
    )
    _prints_an_empty_line(program)


@pytest.mark.parametrize(
    ("torch", "torchvision", "hidden"),
    [
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0", "0.28.0", False),
        ("2.13.0+cpu", None, False),
    ],
)
def test_torchvision_of_another_build_is_hidden(monkeypatch, torch, torchvision, hidden):
    versions = {"torch": torch, "torchvision": torchvision}
    monkeypatch.setattr(optional_packages, "installed", versions.get)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    sys.modules.pop("torchvision", None)
    optional_packages.hide_broken_torchvision()
    assert ("torchvision" in sys.modules) is hidden
