"""`intel-ft bench`: benchmarks of training, data preparation, collectives and `plan`."""

import json as json_text
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from intel_ft.cli.options import Json, print_table, require_writable

app = typer.Typer(
    help="Benchmark training and its parts on this machine. A contender is what is compared: this "
    "package, or another trainer, tool or library that does the same task.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

WorkloadName = Annotated[
    str,
    typer.Option(
        help="Shape of the random model: small, llama2-7b-slice, llama2-7b, llama3-8b-slice, "
        "qwen3-30b-a3b-slice, qwen3-30b-a3b, tiny or tiny-mixture."
    ),
]
Lengths = Annotated[
    str,
    typer.Option(
        help="Lengths of the examples: alpaca (short), long (2,000 to 8,000 tokens) or fixed "
        "(each example fills a row)."
    ),
]
RowTokens = Annotated[
    int | None,
    typer.Option(help="Maximum tokens in a packed row. Default: depends on workload and lengths."),
]
BackendName = Annotated[
    Literal["cpu", "cuda"], typer.Option(help="Device that runs the training step.")
]
BaseDtype = Annotated[
    Literal["auto", "int8", "int4", "nf4"],
    typer.Option(
        help="Data type of the frozen base weights: auto (bf16), int8 or int4 (intel-ft only), or "
        "nf4 (peers as well)."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of each process. Default: one for each of its cores.")
]
Repeat = Annotated[int, typer.Option(min=1, help="Runs of each contender, interleaved.")]
Rounds = Annotated[int, typer.Option(min=1, help="Runs at each value, interleaved.")]
Seconds = Annotated[float, typer.Option(min=0, help="Minimum timed duration of a run, in seconds.")]
LoraRank = Annotated[int, typer.Option(min=1, help="LoRA rank r.")]
Plot = Annotated[Path | None, typer.Option(help="Write a plot to this SVG file as well.")]
Markdown = Annotated[
    bool, typer.Option("--markdown", help="Print the table as Markdown instead of plain text.")
]


@app.command()
def train(
    workload: WorkloadName = "small",
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Peer, a trainer to compare with: trl, trl-packed, transformers, ipex, or "
            "ours-ipex (intel-ft on IPEX). Repeatable."
        ),
    ] = None,
    repeat: Repeat = 3,
    seconds: Seconds = 30.0,
    lengths: Lengths = "alpaca",
    row_tokens: RowTokens = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Examples per optimizer step. Default: depends on workload and lengths."
        ),
    ] = None,
    peer_row_tokens: Annotated[
        int | None,
        typer.Option(
            min=1024,
            help="Row length of trl-packed, in tokens. Default: the same as intel-ft's.",
        ),
    ] = None,
    peer_checkpointing: Annotated[
        bool,
        typer.Option(
            "--peer-checkpointing",
            help="Turn on activation checkpointing for the peers, as TRL does by default.",
        ),
    ] = False,
    loss: Annotated[
        Literal["sft", "dpo"],
        typer.Option(
            help="Loss to train with: sft, or dpo on pairs. The measured time of dpo includes the "
            "reference model; its only peer is trl."
        ),
    ] = "sft",
    rank: LoraRank = 16,
    threads: Threads = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="Processes per contender, started by mpirun; they share the cores."
        ),
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the weights, the examples and their order.")
    ] = 0,
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Turn on activation checkpointing for intel-ft."),
    ] = False,
    base_dtype: BaseDtype = "auto",
    backend: BackendName = "cpu",
    peer_batch: Annotated[
        int, typer.Option(min=1, help="Examples per padded micro-batch of the peers.")
    ] = 4,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Measure tokens/s, MFU and memory of LoRA training.

    Runs of intel-ft and of each --peer are interleaved. MFU is the share of the cores' best GEMM
    rate that training reaches.
    """
    from intel_ft.bench.task import OWN_TRAINER, Task
    from intel_ft.bench.workloads import workload as find_workload

    task = Task(
        contender=OWN_TRAINER,
        workload=find_workload(workload, lengths, row_tokens, batch, loss),
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
    seconds: Annotated[
        float,
        typer.Option(min=0, help="Timed duration of each GEMM shape and data type, in seconds."),
    ] = 0.3,
    lengths: Lengths = "alpaca",
    row_tokens: RowTokens = None,
    threads: Threads = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Measure GEMM rates and memory bandwidth."""
    from intel_ft.bench.workloads import workload as find_workload

    chosen = find_workload(workload, lengths, row_tokens)
    from intel_ft.bench.gemm import bench_gemm
    from intel_ft.bench.tables import gemm_table

    report = bench_gemm(chosen, threads, seconds)
    _print(report, None if json else gemm_table(report), markdown)


@app.command()
def prepare(
    rows: Annotated[
        int, typer.Option(min=1, help="Number of Alpaca-like rows to prepare.")
    ] = 52000,
    repeat: Repeat = 3,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Trainer to compare with: trl, trl-packed or trl-single (TRL in one process), or "
            "cached (intel-ft with data.cache). Repeatable."
        ),
    ] = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Measure data preparation, from a file to a batch plan."""
    from intel_ft.bench.prepare import bench_prepare

    report = bench_prepare(rows, repeat, peer or [])
    from intel_ft.bench.tables import prepare_table

    _print(report, None if json else prepare_table(report), markdown)


@app.command()
def scale(
    over: Annotated[
        str,
        typer.Option(
            help="Parameter to vary: row-tokens, batch, rank (LoRA r), threads or processes."
        ),
    ],
    workload: WorkloadName = "small",
    values: Annotated[
        str | None,
        typer.Option(help="Comma-separated values, such as 256,512. Default: depends on --over."),
    ] = None,
    repeat: Rounds = 1,
    seconds: Seconds = 30.0,
    threads: Threads = None,
    plot: Plot = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Measure how one parameter changes tokens/s, MFU and memory."""
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
    cores: Annotated[int, typer.Option(min=1, help="Cores of each rank.")] = 1,
    values: Annotated[
        str | None,
        typer.Option(help="Numbers of ranks, such as 1,2,4. Default: powers of two that fit here."),
    ] = None,
    via: Annotated[
        Literal["mpirun", "torchrun"], typer.Option(help="Launcher that starts the ranks.")
    ] = "mpirun",
    repeat: Rounds = 3,
    seconds: Seconds = 30.0,
    row_tokens: RowTokens = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=(
                "Examples to scale from: each rank of the smallest run gets 4 times this many per"
                " step. Default: depends on the workload."
            ),
        ),
    ] = None,
    rank: LoraRank = 16,
    base_dtype: BaseDtype = "auto",
    backend: BackendName = "cpu",
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Measure weak and strong scaling with the number of ranks."""
    from intel_ft.bench.ranks import bench_ranks, values_of
    from intel_ft.bench.tables import ranks_table
    from intel_ft.bench.task import OWN_TRAINER, Task
    from intel_ft.bench.workloads import workload as find_workload

    task = Task(
        OWN_TRAINER,
        find_workload(workload, row_tokens=row_tokens, batch=batch),
        rank=rank,
        seconds=seconds,
        base_dtype=base_dtype,
        backend=backend,
    )
    report = bench_ranks(task, values_of(values, cores), cores, via, repeat)
    _print(report, None if json else ranks_table(report), markdown)


@app.command()
def quality(
    seeds: Annotated[
        int, typer.Option(min=1, help="Training runs of each contender, each with its own seed.")
    ] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each training run.")] = 200,
    contender: Annotated[
        list[str] | None,
        typer.Option(
            help="Contender: plain (Transformers and peft), bf16 or int8 (intel-ft). Repeatable. "
            "Default: all."
        ),
    ] = None,
    threads: Threads = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Compare the validation losses of intel-ft and Transformers."""
    from intel_ft.bench.quality import CONTENDERS, bench_quality

    report = bench_quality(contender or list(CONTENDERS), seeds, steps, threads)
    from intel_ft.bench.tables import quality_table

    _print(report, None if json else quality_table(report), markdown)


@app.command()
def collectives(
    ranks: Annotated[int, typer.Option(min=2, help="Number of ranks (processes).")] = 2,
    sizes: Annotated[
        str, typer.Option(help="Comma-separated buffer sizes in bytes; K and M are allowed.")
    ] = "1K,4K,16K,64K,256K,1M,4M,16M,40M,64M,256M",
    collective: Annotated[
        list[str] | None,
        typer.Option(
            help="Collective to measure: all-reduce, broadcast or all-gather. Repeatable. Default: "
            "all."
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Library to compare with: gloo or mpi4py. Repeatable. Default: all that are "
            "installed."
        ),
    ] = None,
    repeat: Repeat = 3,
    hosts: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated host names, such as node1,node2. Default: this host only."
        ),
    ] = None,
    plot: Plot = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Measure latency and bandwidth of collectives.

    Compares oneCCL with gloo and mpi4py.
    """
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
        list[str] | None,
        typer.Option(
            help="Case to measure, such as small; an unknown name prints the list. Repeatable. "
            "Default: all."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="Optimizer steps of each training run.")] = 6,
    threads: Threads = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Compare the predictions of `intel-ft plan` with real runs."""
    from intel_ft.planner.accuracy import bench_plan

    report = bench_plan(case or [], steps, threads)
    from intel_ft.bench.tables import plan_table

    _print(report, None if json else plan_table(report), markdown)


def _print(report: dict[str, Any], table: Any, markdown: bool) -> None:
    """Print `table`, or `report` as one JSON object where `table` is None."""
    if table is None:
        typer.echo(json_text.dumps(report))
    else:
        print_table(table, markdown=markdown)
