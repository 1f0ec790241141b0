"""A package that the command line itself needs and that is not installed: one line, exit code 3."""

import importlib.util
import sys

import pytest

from intel_ft.cli import main


@pytest.mark.parametrize("package", ["typer", "click"])
def test_the_package_is_named(package, monkeypatch, capsys):
    loaded = [name for name in sys.modules if name.partition(".")[0] == package]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what find_spec sees of an absent package
    spec = importlib.util.spec_from_file_location("another_main", main.__file__)
    with pytest.raises(SystemExit) as ended:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert ended.value.code == 3
    error = capsys.readouterr().err
    assert error == (
        f"error: the Python package {package} is not installed: run pip install {package}\n"
    )
