"""Options that several verbs share, and the printing of their results; called from cli."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from intel_ft.tables import Table

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that go before the file's."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, adapter, merged, OpenVINO or model folder, or a Hub id."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]
Base = Annotated[
    str | None, typer.Option(help="Where an adapter's base model is now, if it has moved.")
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens up to this share.")]
TopK = Annotated[int, typer.Option(help="Sample from this many tokens; 0 is all.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes used tokens less likely.")]
Seed = Annotated[int, typer.Option(help="Same seed, same text.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the answer in front of this text; may be repeated.")
]
SourceOrServer = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A run, adapter, merged, OpenVINO or model folder, or a Hub id; none with --server.",
    ),
]
ServerUrl = Annotated[
    str | None,
    typer.Option("--server", help="Ask this OpenAI-compatible server: http://host:port."),
]
ServedModel = Annotated[
    str | None, typer.Option("--model", help="With --server: the model's name there.")
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="With --server: seconds that one answer may take.")
]
SystemPrompt = Annotated[
    str | None, typer.Option("--system", help="System prompt; default is that of training.")
]
Template = Annotated[
    Literal["auto", "llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"],
    typer.Option(help="Prompt template; auto is that of training."),
]


def require_writable(plot: Path | None) -> None:
    """Raise UserError where a plot could not be written, before anything runs for it."""
    from intel_ft.errors import UserError

    if plot is not None and (plot.is_dir() or not plot.parent.is_dir()):
        raise UserError(f"--plot {plot}: name a file in a folder that exists")


def show(result: Any, as_json: bool) -> None:
    """Print a result (a dataclass or a mapping): aligned lines, or one JSON object."""
    values = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else dict(result)  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if value is not None:
            typer.echo(f"{name.replace('_', ' '):<{width}}  {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return str(value)


def print_table(table: Table, *, markdown: bool) -> None:
    """Print a table drawn for a terminal, or as Markdown."""
    if markdown:
        typer.echo(table.markdown())
    else:
        table.draw()


def open_for_prompts(
    source: str, template: str, system: str | None, *, trust_remote_code: bool
) -> tuple[Any, Any, str | None]:
    """The model in `source`, the template its prompts take, and its system prompt."""
    from intel_ft.artifacts.resolve import resolve
    from intel_ft.inference.prompt_template import prompt_template
    from intel_ft.optional_packages import keep_torch_away
    from intel_ft.runtimes.open_model import open_model

    artifact = resolve(source)
    if artifact.kind == "openvino":
        keep_torch_away()
    model = open_model(artifact, trust_remote_code=trust_remote_code)
    chosen, _ = prompt_template(artifact, model.tokenizer, template)
    return model, chosen, system or artifact.system_prompt


def require_source(source: str | None, served: str | None) -> str:
    """MODEL, which is needed where no server is asked."""
    from intel_ft.errors import UserError

    if source is None:
        raise UserError("give a MODEL folder or Hub id, or a server with --server and --model")
    if served is not None:
        raise UserError("--model names what a server serves: give --server, too")
    return source


def open_server(url: str, model: str | None, timeout: float, template: str) -> Any:
    """The server at `url`; template `auto` leaves it to the server to write prompts."""
    from intel_ft.errors import UserError
    from intel_ft.inference.server import Server

    if model is None:
        raise UserError(
            "--server needs --model, the model's name there (GET /v1/models lists them)"
        )
    return Server(url, model, timeout, None if template == "auto" else template)  # type: ignore[arg-type]
