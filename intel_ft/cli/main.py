"""`intel-ft`: the verbs, and the one place where errors become a line and an exit code.

Nothing heavy is imported here or at the top of a verb's file, so that --help answers at once.
"""

import logging
import os
import platform
import sys
import traceback

import click
import typer

from intel_ft import __version__
from intel_ft.cli import (
    bench,
    chat,
    demo,
    doctor,
    eval,
    export,
    generate,
    init,
    launch,
    merge,
    plan,
    push,
    report,
    train,
    validate,
)
from intel_ft.distributed import rank_startup
from intel_ft.errors import FailedElsewhere, IntelFTError, missing_package
from intel_ft.host import openmp

app = typer.Typer(
    name="intel-ft",
    help="LoRA fine-tuning on Xeon and export to OpenVINO, from one YAML file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
for verb in (
    doctor,
    init,
    validate,
    plan,
    train,
    launch,
    eval,
    merge,
    export,
    generate,
    chat,
    push,
    report,
    demo,
):
    app.command(verb.__name__.rpartition(".")[2])(verb.run)
app.add_typer(bench.app, name="bench")

# These compute nothing here, and need not look how busy the cores are.
_LIGHT = {"init", "validate", "launch", "push", "report"}


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks. Works after a verb, too."),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand not in _LIGHT and (policy := openmp.wait_policy().value):
        os.environ[openmp.VARIABLE] = policy


def main() -> None:
    """Run the command line and exit with its code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _set_up_logging(debug)
    try:
        code = app(arguments, prog_name="intel-ft", standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        line, code = _explain(error)
        if not isinstance(error, FailedElsewhere):
            print(line, file=sys.stderr)
        if code:
            rank_startup.leave_exit_code(code)
    sys.exit(code)


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for people and the exit code."""
    if isinstance(error, IntelFTError):
        return f"error: {_rank()}{error}", error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message(), error.exit_code
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()} (see intel-ft --help)", 2
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", 130
    if missing := missing_package(error):
        return f"error: {_rank()}{missing}", missing.exit_code
    text = " ".join(str(error).split())
    return f"error: {_rank()}{type(error).__name__}: {text} (--debug shows where)", 1


def _rank() -> str:
    """Which rank speaks, where that is not the first, and its host, where there are several."""
    number = os.environ.get("RANK", "0")
    if number == "0":
        return ""
    several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")
    return f"rank {number} on {platform.node()}: " if several else f"rank {number}: "


def _set_up_logging(debug: bool) -> None:
    """Our messages on stderr; the libraries' chatter only with --debug."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("intel_ft").setLevel(logging.DEBUG if debug else logging.INFO)
    # Wherever it is installed, peft imports it, and it warns of a kernel that we do not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not debug:
        # Read by the libraries when they are imported, which is later and only if needed.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
