"""`intel-ft launch`."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from intel_ft.cli.options import ConfigFile, Json, Mpirun, Overrides, Ssh
from intel_ft.cli.train import Overwrite, Resume

if TYPE_CHECKING:
    from intel_ft.config import Config


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(
            help="File with one host per line: name, or name:RANKS. Default: this host only."
        ),
    ] = None,
    ranks_per_host: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ranks on each host. Default: as in the host file, else as measured by --tune, "
            "else one per NUMA node, or four of at least four cores each with AMX.",
        ),
    ] = None,
    via: Annotated[
        Literal["mpirun", "accelerate", "torchrun", "slurm", "pbs", "k8s", "k8s-trainjob"],
        typer.Option(
            help="Launcher that starts the ranks. slurm, pbs, k8s and k8s-trainjob print or write "
            "a job instead."
        ),
    ] = "mpirun",
    resume: Resume = False,
    overwrite: Overwrite = False,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0, help="Maximum number of automatic restarts from the latest checkpoint."
        ),
    ] = 0,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="Start and restart without unreachable hosts.")
    ] = False,
    ssh: Ssh = "ssh",
    mpirun: Mpirun = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Number of nodes of a Slurm, PBS or Kubernetes job.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Job file to write. Default: print the job."),
    ] = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="Submit the job file that --output writes.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(
            help="Container image of a Kubernetes job. Default: intel-ft:mpi for k8s, intel-ft for "
            "k8s-trainjob."
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Benchmark steps with different numbers of ranks first, then use the fastest, "
            "also in later runs of this model.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the command and its environment without running it."),
    ] = False,
    json: Json = False,
) -> None:
    """Train CONFIG with several ranks, on one or more hosts."""
    from intel_ft import config as configuration
    from intel_ft.distributed.launch import scheduler_jobs
    from intel_ft.distributed.launch.launcher import Request, launch, launch_command, prepare

    settings = configuration.load(config, overrides)
    scheduled = via in scheduler_jobs.KINDS
    _require_effect(scheduled, nodes, tune)
    if tune:
        _tune(settings)
    train = (*(["--resume"] if resume else []), *(["--overwrite"] if overwrite else []))
    request = Request(
        config=config,
        overrides=tuple(overrides or ()),
        run=settings.output.directory,
        train=(*train, "--json") if json else train,
        hostfile=hostfile,
        ranks_per_host=ranks_per_host,
        via=via,
        ssh=ssh,
        mpirun=mpirun,
        max_restarts=max_restarts,
        elastic=elastic,
    )
    if scheduled:
        text = scheduler_jobs.render(request, nodes, image)
        if output is not None and via in ("slurm", "pbs"):
            scheduler_jobs.make_folder(request)
        _write_job(via, text, output, submit=submit and not dry_run)
        return
    if dry_run:
        job, decisions = prepare(request, check=False)
        command = launch_command(request, job)
        for decision in decisions:
            typer.echo(f"# {decision}")
        for name, value in sorted(command.environment.items()):
            typer.echo(f"export {name}={shlex.quote(value)}")
        for path, text in command.files.items():
            typer.echo(f"mkdir -p {shlex.quote(str(path.parent))}")
            typer.echo(f"printf %s {shlex.quote(text)} > {shlex.quote(str(path))}")
        typer.echo(shlex.join(command.arguments))
        return
    if code := launch(request):
        raise typer.Exit(code)


def _require_effect(scheduled: bool, nodes: int, tune: bool) -> None:
    """Raise UserError for an option that would have no effect, or a wrong one."""
    from intel_ft.errors import UserError

    if nodes > 1 and not scheduled:
        raise UserError(
            f"--nodes {nodes} is for a job of Slurm, PBS or Kubernetes: add --via slurm, pbs or "
            "k8s, or list the hosts in --hostfile"
        )
    if tune and scheduled:
        raise UserError(
            "--tune times steps on this machine, not on the job's nodes: run it on a node first, "
            "and give --ranks-per-host here"
        )


def _tune(settings: "Config") -> None:
    from intel_ft.bench.tune import tune
    from intel_ft.host import topology

    tune(settings, topology.read())


def _write_job(via: str, text: str, output: Path | None, *, submit: bool) -> None:
    from intel_ft.distributed.launch import scheduler_jobs
    from intel_ft.errors import EnvironmentProblem, UserError
    from intel_ft.files import write_text

    if output is None:
        if submit:
            raise UserError("--submit needs --output, the job file to submit")
        typer.echo(text, nl=False)
        return
    write_text(output, text)
    command = scheduler_jobs.submission(via, output)
    typer.echo(f"{output}: {shlex.join(command)}")
    if submit:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            raise EnvironmentProblem(
                f"{command[0]} cannot be run ({error.strerror}): submit {output} from a host that "
                "has it"
            ) from None
