"""`intel-ft bench`: how fast training is here, beside peers and beside what the cores can do."""

import json as json_text
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from intel_ft.cli.options import Json, print_table, require_writable

app = typer.Typer(
    help="Measure speed, memory and quality of training, against peers and the machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

WorkloadName = Annotated[
    str, typer.Option(help="small, llama2-7b-slice, llama2-7b, llama3-8b-slice or tiny.")
]
Lengths = Annotated[
    str, typer.Option(help="alpaca, long (documents of 2000-8000 tokens) or fixed (row tokens).")
]
RowTokens = Annotated[int | None, typer.Option(help="Tokens of a packed row.")]
BackendName = Annotated[Literal["cpu", "cuda"], typer.Option(help="What multiplies.")]
BaseDtype = Annotated[
    Literal["auto", "int8", "nf4"],
    typer.Option(help="Of our side's frozen weights; nf4 is for the peers, too."),
]
Threads = Annotated[int | None, typer.Option(help="Of each process; default all its cores.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]


@app.command()
def train(
    workload: WorkloadName = "small",
    peer: Annotated[
        list[str] | None,
        typer.Option(help="trl, trl-packed, transformers, ipex or ours-ipex; may be repeated."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each side, in turns.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Timed seconds a run, at least.")] = 30.0,
    lengths: Lengths = "alpaca",
    row_tokens: RowTokens = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples an optimizer step.")] = None,
    peer_row_tokens: Annotated[
        int | None, typer.Option(min=1024, help="Tokens of trl-packed's rows; default as ours.")
    ] = None,
    peer_checkpointing: Annotated[
        bool, typer.Option("--peer-checkpointing", help="On the peers' side, TRL's own default.")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, help="LoRA's r.")] = 16,
    threads: Threads = None,
    processes: Annotated[
        int, typer.Option(min=1, help="That share the cores, of every side, through mpirun.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, examples and order.")] = 0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Activation checkpointing on our side.")
    ] = False,
    base_dtype: BaseDtype = "auto",
    backend: BackendName = "cpu",
    peer_batch: Annotated[
        int, typer.Option(min=1, help="Padded examples a forward, on the peers' side.")
    ] = 4,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Token/s, MFU and memory of LoRA training, ours and peers', each in a fresh process."""
    from intel_ft.bench.task import OURS, Task
    from intel_ft.bench.workloads import workload as find

    task = Task(
        side=OURS,
        workload=find(workload, lengths, row_tokens, batch),
        rank=rank,
        threads=threads,
        seconds=seconds,
        seed=seed,
        peer_row_tokens=peer_row_tokens,
        peer_checkpointing=peer_checkpointing,
        checkpointing=checkpointing,
        base_dtype=base_dtype,
        backend=backend,
        peer_batch=peer_batch,
        processes=processes,
    )
    from intel_ft.bench.tables import train_table
    from intel_ft.bench.train import bench_train

    report = bench_train(task, peer or [], repeat)
    _print(report, None if json else train_table(report), markdown)


@app.command()
def gemm(
    workload: WorkloadName = "small",
    seconds: Annotated[float, typer.Option(min=0, help="A product and kind.")] = 0.3,
    lengths: Lengths = "alpaca",
    row_tokens: RowTokens = None,
    threads: Threads = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Rates of the workload's matrix products, and of memory."""
    from intel_ft.bench.workloads import workload as find

    chosen = find(workload, lengths, row_tokens)
    from intel_ft.bench.gemm import bench_gemm
    from intel_ft.bench.tables import gemm_table

    report = bench_gemm(chosen, threads, seconds)
    _print(report, None if json else gemm_table(report), markdown)


@app.command()
def prepare(
    rows: Annotated[int, typer.Option(min=1, help="Alpaca-like rows to prepare.")] = 52000,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each side, in turns.")] = 3,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="trl, trl-packed or trl-single (one process); may be repeated."),
    ] = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Time from a file of rows to token ids, masks and a plan, ours and TRL's."""
    from intel_ft.bench.prepare import bench_prepare

    report = bench_prepare(rows, repeat, peer or [])
    from intel_ft.bench.tables import prepare_table

    _print(report, None if json else prepare_table(report), markdown)


@app.command()
def scale(
    over: Annotated[str, typer.Option(help="row-tokens, batch, rank, threads or processes.")],
    workload: WorkloadName = "small",
    values: Annotated[str | None, typer.Option(help="Such as 256,512; has a default each.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds over all values.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Timed seconds a run, at least.")] = 30.0,
    threads: Threads = None,
    plot: Annotated[Path | None, typer.Option(help="Also write this SVG plot.")] = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """How our token/s, MFU and memory change with row length, batch, r, threads or processes."""
    from intel_ft.bench.scale import bench_scale, plotted, values_of
    from intel_ft.bench.tables import scale_table
    from intel_ft.files import write_text

    require_writable(plot)
    report = bench_scale(workload, over, values_of(over, values), repeat, seconds, threads)
    if plot is not None:
        write_text(plot, plotted(report))
    _print(report, None if json else scale_table(report), markdown)


@app.command()
def ranks(
    workload: WorkloadName = "small",
    cores: Annotated[int, typer.Option(min=1, help="Of each rank.")] = 1,
    values: Annotated[str | None, typer.Option(help="Ranks, as 1,2,4; default up to all.")] = None,
    via: Annotated[
        Literal["mpirun", "torchrun"], typer.Option(help="What starts them.")
    ] = "mpirun",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds over all values.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Timed seconds a run, at least.")] = 30.0,
    row_tokens: RowTokens = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="A quarter of the examples a step of fewest ranks.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="LoRA's r.")] = 16,
    base_dtype: BaseDtype = "auto",
    backend: BackendName = "cpu",
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Weak and strong scaling on this host: token/s, efficiency, imbalance, time in exchanges."""
    from intel_ft.bench.ranks import bench_ranks, values_of
    from intel_ft.bench.tables import ranks_table
    from intel_ft.bench.task import OURS, Task
    from intel_ft.bench.workloads import workload as find

    task = Task(
        OURS,
        find(workload, row_tokens=row_tokens, batch=batch),
        rank=rank,
        seconds=seconds,
        base_dtype=base_dtype,
        backend=backend,
    )
    report = bench_ranks(task, values_of(values, cores), cores, via, repeat)
    _print(report, None if json else ranks_table(report), markdown)


@app.command()
def quality(
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each side.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a training.")] = 200,
    side: Annotated[
        list[str] | None, typer.Option(help="plain, bf16 or int8; may be repeated; default all.")
    ] = None,
    threads: Threads = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Held-out loss on the demo's task: our training beside plain Transformers and peft."""
    from intel_ft.bench.quality import SIDES, bench_quality

    report = bench_quality(side or list(SIDES), seeds, steps, threads)
    from intel_ft.bench.tables import quality_table

    _print(report, None if json else quality_table(report), markdown)


@app.command()
def collectives(
    ranks: Annotated[int, typer.Option(min=2, help="Processes.")] = 2,
    sizes: Annotated[
        str, typer.Option(help="Bytes of the buffers.")
    ] = "1K,4K,16K,64K,256K,1M,4M,16M,40M,64M,256M",
    collective: Annotated[
        list[str] | None,
        typer.Option(help="all-reduce, broadcast or all-gather; may be repeated; default all."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="gloo or mpi4py; may be repeated; default those installed."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each side, in turns.")] = 3,
    hosts: Annotated[
        str | None, typer.Option(help="Such as node1,node2, for mpirun; default this host.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also write this SVG plot.")] = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Latency and bandwidth of the ccl backend, gloo and mpi4py between ranks."""
    from intel_ft.bench.collectives import COLLECTIVES, bench_collectives, sizes_of
    from intel_ft.files import write_text

    require_writable(plot)
    report = bench_collectives(
        ranks,
        sizes_of(sizes),
        collective or list(COLLECTIVES),
        peer,
        repeat,
        hosts.split(",") if hosts else [],
    )
    from intel_ft.bench.collectives_table import collectives_table, plotted

    if plot is not None:
        write_text(plot, plotted(report))
    _print(report, None if json else collectives_table(report), markdown)


@app.command()
def plan(
    case: Annotated[
        list[str] | None, typer.Option(help="One of its cases; may be repeated; default all.")
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="Optimizer steps of a run.")] = 6,
    threads: Threads = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Predicted memory and step time beside those of real runs, each in a fresh process."""
    from intel_ft.planner.accuracy import bench_plan

    report = bench_plan(case or [], steps, threads)
    from intel_ft.bench.tables import plan_table

    _print(report, None if json else plan_table(report), markdown)


def _print(report: dict[str, Any], table: Any, markdown: bool) -> None:
    """One JSON object if there is no table to print, else that."""
    if table is None:
        typer.echo(json_text.dumps(report))
    else:
        print_table(table, markdown=markdown)
