"""Options that several verbs share, and functions that print results."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from intel_ft.tables import Table

if TYPE_CHECKING:
    from intel_ft.api import LoadedModel
    from intel_ft.inference.server import Server

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file that describes the run.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Values that override those in CONFIG, such as train.max_steps=100.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a run, an adapter, a merged model, an OpenVINO model or a base model, or a "
        "Hub id.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write. It must be absent or empty.")
]
Base = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub id of the adapter's base model. Default: the one named in the adapter."
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Allow Python code from the model's folder to run."),
]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of tokens in an answer.")]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature. 0 always takes the most likely token.")
]
TopP = Annotated[
    float,
    typer.Option(help="Sample from the most likely tokens whose probabilities add up to this."),
]
TopK = Annotated[
    int, typer.Option(help="Sample from this many of the most likely tokens. 0 means all.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Values above 1 make repeated tokens less likely.")
]
Seed = Annotated[int, typer.Option(help="Seed of the sampling. The same seed gives the same text.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text. Repeatable.")
]
SourceOrServer = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Folder of a run, an adapter, a merged model, an OpenVINO model or a base model, or a "
        "Hub id. Leave it out with --server.",
    ),
]
ServerUrl = Annotated[
    str | None,
    typer.Option(
        "--server", help="URL of an OpenAI-compatible server to use, such as http://host:port."
    ),
]
ServedModel = Annotated[
    str | None,
    typer.Option("--model", help="Name of the model on the server. Required with --server."),
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds to wait for an answer from the server.")
]
Ssh = Annotated[str, typer.Option(help="Program that connects to the hosts.")]
Mpirun = Annotated[
    str | None,
    typer.Option(help="mpirun to use. Default: the one installed with this Python, else on PATH."),
]
SystemPrompt = Annotated[
    str | None, typer.Option("--system", help="System prompt. Default: the one used in training.")
]
Template = Annotated[
    Literal["auto", "llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"],
    typer.Option(
        help="Prompt template. auto: the one used in training, else the tokenizer's; tokenizer: "
        "the tokenizer's chat template; none: the prompt as it is."
    ),
]


def require_writable(plot: Path | None) -> None:
    """Raise UserError if `plot` cannot be written, before the work for it starts."""
    from intel_ft.errors import UserError

    if plot is not None and (plot.is_dir() or not plot.parent.is_dir()):
        raise UserError(f"--plot {plot}: give a file in an existing folder")


def show(result: Any, as_json: bool) -> None:
    """Print a result (a dataclass or a mapping): aligned lines, or one JSON object."""
    values = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else dict(result)  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if value is not None and value != []:
            typer.echo(f"{name.replace('_', ' '):<{width}}  {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


def print_table(table: Table, *, markdown: bool) -> None:
    """Print a table drawn for a terminal, or as Markdown."""
    if markdown:
        typer.echo(table.markdown())
    else:
        table.draw()


def load_alone(source: str, *, base: str | None, trust_remote_code: bool) -> "LoadedModel":
    """Load `source` in a process that runs nothing else: an OpenVINO model does without torch."""
    from intel_ft.api import load_model
    from intel_ft.artifacts.resolve import resolve
    from intel_ft.optional_packages import block_torch_import

    if resolve(source).kind == "openvino":
        block_torch_import()
    return load_model(source, base=base, trust_remote_code=trust_remote_code)


def require_source(source: str | None, served: str | None) -> str:
    """Return MODEL; raise UserError if it is missing or --model is given without --server."""
    from intel_ft.errors import UserError

    if source is None:
        raise UserError("give MODEL (a folder or Hub id), or a server with --server and --model")
    if served is not None:
        raise UserError("--model is the name of a model on a server: give --server as well")
    return source


def open_server(url: str, model: str | None, timeout: float, template: str) -> "Server":
    """Return a client for `url`; with template `auto` the server formats the prompts."""
    from intel_ft.errors import UserError
    from intel_ft.inference.server import Server

    if model is None:
        raise UserError(
            "--server needs --model, the name of a model on it (GET /v1/models lists them)"
        )
    return Server(url, model, timeout, None if template == "auto" else template)  # type: ignore[arg-type]
