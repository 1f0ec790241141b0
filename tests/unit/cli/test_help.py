"""`--help` of every verb: complete sentences, arguments described once, no summary cut off."""

from collections.abc import Iterator

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from intel_ft.cli.main import app


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = tuple(commands(get_command(app)))


def find(path: tuple[str, ...]) -> tuple[click.Command, click.Context]:
    command = get_command(app)
    for name in path:
        command = command.commands[name]
    return command, click.Context(command, info_name=" ".join(path))


def test_all_verbs_are_there() -> None:
    verbs = {path[0] for path in ALL}
    assert verbs == {
        *("doctor", "init", "validate", "plan", "train", "launch", "eval", "merge", "export"),
        *("generate", "chat", "push", "report", "demo", "bench"),
    }


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_parameter_is_described_by_a_sentence(path) -> None:
    command, context = find(path)
    assert command.help.endswith(".")
    for parameter in command.get_params(context):
        names, text = parameter.get_help_record(context)
        sentence = text.split("  [")[0]  # in front of the default
        assert sentence.endswith("."), f"{names}: {text}"
        assert not sentence[0].islower() or sentence.startswith("mpirun "), f"{names}: {text}"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_arguments_are_described_once(path) -> None:
    command, _ = find(path)
    text = CliRunner().invoke(app, [*path, "--help"]).stdout
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    assert text.count("rguments:") == bool(arguments)
    for argument in arguments:
        _, help_text = argument.get_help_record(click.Context(command))
        first_words = " ".join(help_text.split()[:3])
        assert text.count(first_words) >= 1, argument


@pytest.mark.parametrize("path", [(), ("bench",)], ids=["intel-ft", "bench"])
def test_no_summary_is_cut_off(path) -> None:
    text = CliRunner().invoke(app, [*path, "--help"]).stdout
    assert "..." not in text.partition("Commands:")[2]
