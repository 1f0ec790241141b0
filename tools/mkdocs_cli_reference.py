"""An mkdocs hook: generates cli.md, the command line reference, from the commands themselves."""

from collections.abc import Iterator

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

from intel_ft.cli.main import app

INTRODUCTION = """\
# Command line

`intel-ft COMMAND` runs one stage; `intel-ft COMMAND --help` prints its part of this page. Each
command that prints results has `--json`, which prints one JSON object on stdout and everything else
on stderr. `--debug`, before or after the command, shows tracebacks.

| exit code | meaning |
|---:|---|
| 0 | done |
| 1 | the run failed |
| 2 | bad input: the config, the data, a model folder or an argument |
| 3 | the machine or the installation lacks something |
| 4 | the quality gate of `export` rejected every candidate |
| 130 | interrupted by Ctrl-C; `train` has saved a checkpoint, and `--resume` continues |
| 143 | ended by SIGTERM; the same holds |
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add cli.md to the pages."""
    text = "\n".join([INTRODUCTION, *_sections(get_command(app), "intel-ft", level=2)])
    files.append(File.generated(config, "cli.md", content=text))
    return files


def _sections(group: click.Command, path: str, level: int) -> Iterator[str]:
    """Yield a section for each command of `group`, in the order of --help."""
    assert isinstance(group, click.Group)
    for name, command in group.commands.items():
        context = click.Context(command, info_name=f"{path} {name}")
        yield f"{'#' * level} {name}\n"
        yield f"    {' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n"
        yield f"{command.help}\n"
        if isinstance(command, click.Group):
            yield from _sections(command, f"{path} {name}", level + 1)
            continue
        yield "| option | meaning |\n|---|---|"
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record and record[0] != "--help":
                yield f"| `{record[0]}` | {_cell(record[1])} |"  # a bar in code does not end a cell
        yield ""


def _cell(text: str) -> str:
    """Return `text` for a cell of a table, where a bar would end the cell."""
    return " ".join(text.split()).replace("|", r"\|")
