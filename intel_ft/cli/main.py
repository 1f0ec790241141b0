"""`intel-ft`: its verbs, and the one place that turns errors into a message and an exit code.

Heavy packages are imported inside the functions that need them, so that --help answers at once.
"""

import errno
import logging
import os
import platform
import sys
import traceback
from typing import Any

from intel_ft import __version__
from intel_ft.errors import FailedElsewhere, IntelFTError, Stopped, missing_package

try:
    import click
    import typer
    import typer.core
    import typer.main
except ModuleNotFoundError as error:  # `main` explains all other packages that are missing
    print(f"error: {missing_package(error)}", file=sys.stderr)
    sys.exit(3)

from intel_ft.cli import (
    bench,
    chat,
    demo,
    doctor,
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
from intel_ft.cli import eval as eval_verb
from intel_ft.distributed import rank_startup
from intel_ft.host import openmp


class _Argument(typer.core.TyperArgument):
    """An argument whose help is shown once.

    typer 0.25 sets the help before click 8.5 resets it to None, so that none is shown; set again
    afterwards, typer and click would each print it under a separate heading.
    """

    def __init__(self, *, help: str | None = None, **options: Any) -> None:  # noqa: A002 typer's name
        super().__init__(help=help, **options)
        self.text = help

    def get_help_record(self, ctx: click.Context) -> Any:
        record = super().get_help_record(ctx)
        return record and (record[0], "  ".join(filter(None, (self.text, record[1]))))


# Typer has no parameter for this class. To be removed once typer passes the help on to click.
typer.main.TyperArgument = _Argument  # type: ignore[attr-defined]

app = typer.Typer(
    name="intel-ft",
    help="Fine-tune language models on Xeon and export them to OpenVINO, from one YAML file.",
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # click suggests one already
    rich_markup_mode=None,
)
for verb in (
    doctor,
    init,
    validate,
    plan,
    train,
    launch,
    eval_verb,
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

# What the system reports about a path that the user named, most often where to write.
_WRONG_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}

# Verbs that compute nothing on this machine; the others set how idle OpenMP threads wait.
_LIGHT = {"init", "validate", "launch", "push", "report"}


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(
        False, "--debug", help="Show tracebacks. Also accepted after the command."
    ),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand not in _LIGHT and (policy := openmp.wait_policy().value):
        os.environ[openmp.VARIABLE] = policy


def main() -> None:
    """Run the command line and exit with its exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _set_up_logging(debug)
    try:
        code = app(arguments, prog_name="intel-ft", standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # whatever read our output has ended, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        line, code = _explain(error)
        if not _is_printed_elsewhere(error):
            print(line, file=sys.stderr)
        if code:
            rank_startup.report_exit_code(code)
    sys.exit(code)


def _is_printed_elsewhere(error: BaseException) -> bool:
    """Whether another rank prints the line: that which failed, or rank 0 where all ranks stop."""
    stopped = isinstance(error, Stopped | KeyboardInterrupt)
    return isinstance(error, FailedElsewhere) or (stopped and _rank() != "")


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the message for an error, one line, and the exit code."""
    if isinstance(error, IntelFTError):
        return f"error: {_rank()}{error}", error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message(), error.exit_code
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else "intel-ft"
        return f"error: {error.format_message()} (see {verb} --help)", 2
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", 130
    if missing := missing_package(error):
        return f"error: {_rank()}{missing}", missing.exit_code
    return _explain_other(error)


def _explain_other(error: BaseException) -> tuple[str, int]:
    """The message and exit code for an error that is not of this package."""
    if isinstance(error, OSError) and error.filename and error.errno in _WRONG_PATH:
        fact = f"{error.filename}: {error.strerror}"
        return f"error: {_rank()}{fact}: check its permissions, or name another path", 2
    text = " ".join(str(error).split())
    return f"error: {_rank()}{type(error).__name__}: {text} (--debug shows the traceback)", 1


def _rank() -> str:
    """Return a prefix that names this rank, unless it is rank 0, and its host if there are more."""
    number = os.environ.get("RANK", "0")
    if number == "0":
        return ""
    several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")
    return f"rank {number} on {platform.node()}: " if several else f"rank {number}: "


def _set_up_logging(debug: bool) -> None:
    """Send messages of intel_ft to stderr; show those of libraries only with --debug."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("intel_ft").setLevel(logging.DEBUG if debug else logging.INFO)
    # peft imports bitsandbytes if it is installed, which warns about a kernel that is not used.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not debug:
        # The libraries read these when they are imported, later and only if needed.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
