"""`intel-ft plan`."""

import json as json_text
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from intel_ft.cli.options import ConfigFile, Json, Overrides, print_table, require_writable

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the cluster.")] = 1,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks a node.")] = 1,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores a node; default this machine's, or the CPU's.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory a node, or a GPU, as 256GiB; default what is here.")
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(help="8380, 8480+, 8592+ or 6980P; default cores like these.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="T4, L4, A100, H100 or H200, one a rank.")] = None,
    sockets: Annotated[int, typer.Option(min=1, help="Sockets a node, with --cpu.")] = 1,
    network: Annotated[float, typer.Option(min=0.001, help="Gbit/s between nodes.")] = 10.0,
    watts: Annotated[float | None, typer.Option(min=0, help="A node's power.")] = None,
    gemm_tflops: Annotated[
        float | None, typer.Option(min=0.001, help="A node's product rate, where it is known.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Do not read the data: so many examples.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Do not read the data: tokens an example.")
    ] = None,
    sweep: Annotated[
        Literal["nodes", "threads", "row-tokens"] | None, typer.Option(help="Over several values.")
    ] = None,
    values: Annotated[str | None, typer.Option(help="Of --sweep, as 1,2,4.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Of --sweep: also write this SVG.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print --sweep's table as Markdown.")
    ] = False,
    json: Json = False,
) -> None:
    """Memory, time and energy that CONFIG will need, here or on a cluster, before it runs."""
    from intel_ft import config as configuration
    from intel_ft.errors import UserError

    settings = configuration.load(config, overrides)
    if sweep is None and (values or plot):
        raise UserError("--values and --plot belong to --sweep")
    require_writable(plot)
    from intel_ft.planner.inputs import Cluster, inputs_of
    from intel_ft.planner.plan import plan
    from intel_ft.planner.workload import AssumedData

    cluster = Cluster(
        nodes=nodes,
        ranks=ranks,
        sockets=sockets,
        cores=cores,
        memory=None if memory is None else _bytes(memory),
        cpu=cpu,
        gpu=gpu,
        network=network * 1e9,
        watts=watts,
        gemm_rate=None if gemm_tflops is None else gemm_tflops * 1e12,
    )
    assumed = None if examples is None and tokens is None else AssumedData(examples, tokens)
    inputs = inputs_of(settings, cluster, assumed)
    if sweep is None:
        from intel_ft.planner.text import lines

        report = plan(inputs)
        typer.echo(json_text.dumps(report) if json else "\n".join(lines(report)))
        return
    from intel_ft.files import write_text
    from intel_ft.planner.sweep import plotted, swept, values_of
    from intel_ft.planner.text import sweep_table

    points = swept(inputs, sweep, values_of(inputs, sweep, values))
    if plot is not None:
        write_text(plot, plotted(points, sweep))
    if json:
        typer.echo(json_text.dumps({"over": sweep, "points": points}))
    else:
        print_table(sweep_table(points, sweep), markdown=markdown)


def _bytes(text: str) -> int:
    """256GiB, 256G or 1.5T as bytes; units are powers of 1024."""
    from intel_ft.errors import UserError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise UserError(f"--memory {text}: write it as 256GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])
