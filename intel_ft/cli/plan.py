"""`intel-ft plan`."""

import json as json_text
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from intel_ft.cli.options import ConfigFile, Json, Overrides, print_table, require_writable

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks on each node.")] = 1,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="Cores in each node. Default: this machine's, or those of --cpu."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of each node, or of each GPU with --gpu, such as 256GiB. Default: this "
            "machine's, or that of --gpu."
        ),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            help="Xeon model of the nodes: 8380, 8480+, 8592+ or 6980P. Default: cores like those "
            "of this machine, measured now."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU of each rank: T4, L4, A100, H100 or H200. Default: no GPU."),
    ] = None,
    sockets: Annotated[int, typer.Option(min=1, help="CPU sockets in each node, with --cpu.")] = 1,
    network: Annotated[
        float, typer.Option(min=0.001, help="Network bandwidth between nodes, in Gbit/s.")
    ] = 10.0,
    watts: Annotated[
        float | None, typer.Option(min=0, help="Power of each node in watts, to estimate energy.")
    ] = None,
    gemm_tflops: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="GEMM rate of each node in TFLOP/s; `intel-ft bench gemm` measures it (in "
            "GFLOP/s). Default: measured now, or that of --cpu or --gpu.",
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(min=1, help="Assume this many examples instead of reading the data."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=2, help="Assume this many tokens per example instead of reading the data."
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Read all the data, and train some of the model's layers on this machine for a "
            "few steps (a minute or less) to correct the predictions. Default: read only the rows "
            "of the sampled steps, and measure only GEMM and memory rates.",
        ),
    ] = False,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Plan with backend.shard=true: the ranks share weights and optimizer."
        ),
    ] = False,
    sweep: Annotated[
        Literal["nodes", "threads", "row-tokens"] | None,
        typer.Option(help="Plan for several values of this parameter and print them as a table."),
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="Comma-separated values for --sweep, such as 1,2,4.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a plot of --sweep to this SVG file as well.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of --sweep as Markdown.")
    ] = False,
    json: Json = False,
) -> None:
    """Predict memory, time and energy of a run.

    The run may be on this machine or on a cluster; nothing is trained.
    """
    from intel_ft import config as configuration
    from intel_ft.errors import UserError

    sharded = ["backend.shard=true"] if shard else []
    settings = configuration.load(config, [*(overrides or ()), *sharded])
    if sweep is None and (values or plot):
        raise UserError("--values and --plot need --sweep")
    if sockets > 1 and cpu is None:
        raise UserError("--sockets counts the CPUs of --cpu: add --cpu")
    require_writable(plot)
    from intel_ft.gc_pause import gc_paused
    from intel_ft.optional_packages import import_peft

    import_peft()
    with gc_paused():
        from intel_ft.planner import inputs as planned
        from intel_ft.planner import plan as planner
        from intel_ft.planner.lengths import AssumedData

    cluster = planned.Cluster(
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
    if sweep is None and not json:
        from intel_ft.planner import text

        # Each part is printed as soon as it is known: reading data and measuring take seconds.
        found = planned.counted(settings, cluster, time_layers=measure)
        facts = planner.model_facts(found)
        typer.echo("\n".join(text.model_lines(facts)))
        inputs = planned.with_data(found, assumed, measure)
        if not measure:  # the measurement corrects the memory
            typer.echo("\n".join(text.size_lines({**facts, **planner.sizes(inputs)})))
        report = planner.plan(planned.with_rates(inputs, time_layers=measure))
        if measure:
            typer.echo("\n".join(text.size_lines(report)))
        typer.echo("\n".join(text.time_lines(report)))
        return
    inputs = planned.inputs_of(settings, cluster, assumed, time_layers=measure)
    if sweep is None:
        typer.echo(json_text.dumps(planner.plan(inputs)))
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
    """Convert 256GiB, 256G or 1.5T to bytes; units are powers of 1024."""
    from intel_ft.errors import UserError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--memory {text}: write a size with its unit, such as 256GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
