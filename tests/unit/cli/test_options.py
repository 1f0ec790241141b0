"""What verbs check before they load anything, and how results are printed."""

import errno
import json
import os
from dataclasses import dataclass

import pytest
import typer

from intel_ft.cli import chat, export, generate, init, main, options, plan, report
from intel_ft.errors import UserError


@dataclass
class Result:
    train_loss: float
    tokens: float
    folder: str
    eval_loss: float | None = None


def test_show_aligns_what_is_there_and_prints_one_object(capsys) -> None:
    result = Result(1.23456, 12345.6, "runs/a")
    options.show(result, False)
    assert capsys.readouterr().out == (
        "train loss  1.235\ntokens      12,346\nfolder      runs/a\n"
    )
    options.show(result, True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "train_loss": 1.23456,
        "tokens": 12345.6,
        "folder": "runs/a",
        "eval_loss": None,
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [("256GiB", 256 * 2**30), ("1.5T", 1.5 * 2**40), ("512 mb", 512 * 2**20)],
)
def test_sizes_of_memory(text, size) -> None:
    assert plan._bytes(text) == size


@pytest.mark.parametrize("text", ["", "0G", "GiB", "12Q", "-1G", "512", "512B"])
def test_what_is_no_size_of_memory(text) -> None:
    with pytest.raises(UserError, match="--memory"):
        plan._bytes(text)


def test_a_plot_needs_a_file_name_in_a_folder(tmp_path) -> None:
    options.require_writable(None)
    options.require_writable(tmp_path / "plot.svg")
    for path in (tmp_path, tmp_path / "none" / "plot.svg"):
        with pytest.raises(UserError, match="--plot"):
            options.require_writable(path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"source": "model"}, "--input"),
        ({"source": "model", "prompt": "a", "prompt_file": "b"}, "--input"),
        ({"source": "model", "prompt": "a", "n": 2}, "--temperature"),
        ({"source": "model", "prompt": "a", "resume": True}, "--output"),
        ({"source": "model", "prompt": "a", "server": "http://host", "model": "m"}, "--model"),
        ({"prompt": "a"}, "MODEL"),
        ({"source": "model", "prompt": "a", "model": "served"}, "--server"),
        ({"source": "a", "server": "http://host"}, "--model"),
    ],
)
def test_generate_names_the_option_that_is_missing(arguments, named) -> None:
    with pytest.raises(UserError) as error:
        generate.run(**arguments)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "MODEL"),
        ({"source": "model", "server": "http://host", "model": "m"}, "--server"),
        ({"server": "http://host", "model": "m", "template": "llama2"}, "--template"),
        ({"server": "http://host"}, "--model"),
    ],
)
def test_chat_names_the_option_that_is_missing(arguments, named) -> None:
    with pytest.raises(UserError) as error:
        chat.run(**arguments)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"sources": ["a", "b"]}, "--adapter"),
        ({"sources": ["a"], "adapter": True, "precision": "auto"}, "--format"),
        ({"sources": ["a"], "adapter": True, "min_agreement": "0.9"}, "--adapter"),
        ({"sources": ["a"], "max_ppl_increase": "little"}, "--max-ppl-increase"),
        ({"sources": ["a"], "min_agreement": "-1"}, "--min-agreement"),
        ({"sources": ["a"], "pairs": ["groupsize=64"]}, "group_size"),
    ],
)
def test_export_names_the_option_that_is_wrong(tmp_path, arguments, named) -> None:
    with pytest.raises(UserError) as error:
        export.run(output=tmp_path / "out", **arguments)
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()


def test_init_takes_a_recipe_or_a_config(tmp_path) -> None:
    for arguments in (
        {"recipe": "lora", "source": tmp_path / "a.yaml"},
        {"output": tmp_path / "run.yaml"},
    ):
        with pytest.raises(UserError, match="--from"):
            init.run(**arguments)


def test_a_report_of_several_runs_needs_a_name(tmp_path) -> None:
    with pytest.raises(UserError, match="-o"):
        report.run([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="is a folder"):
        report.run([tmp_path / "a"], output=tmp_path)


def test_plan_wants_values_with_a_sweep_only(tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {name_or_path: tiny-python-llama}\ndata: {train: docstring-to-python}\n"
        f"output: {{directory: {tmp_path / 'run'}}}\n"
    )
    with pytest.raises(UserError, match="--sweep"):
        plan.run(config, values="1,2")


def test_doctor_exits_3_where_something_failed(monkeypatch, capsys) -> None:
    from intel_ft.cli import doctor

    with pytest.raises(typer.Exit) as ended:
        doctor._show(Result(1.0, 2.0, "a"), True, ["ERROR  one"], False)
    assert ended.value.exit_code == 3
    assert "ERROR  one" in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_a_path_that_cannot_be_written_is_bad_input(number, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "ro/run.yaml")

    monkeypatch.setattr(main, "app", refuse)
    monkeypatch.setattr("sys.argv", ["intel-ft", "init"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: ro/run.yaml: {os.strerror(number)}: ")
    assert "OSError" not in error
