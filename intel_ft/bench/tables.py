"""Tables of a benchmark for a terminal or as Markdown; called from cli.bench."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_QUIET = 1.1  # idle machines measured the same rate within 3 %


@dataclass(frozen=True)
class Table:
    """Column titles, rows of ready text, and lines that belong below them."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """A GitHub table, numbers to the right."""
        rule = ("---",) + ("---:",) * (len(self.columns) - 1)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def train_table(report: dict[str, Any]) -> Table:
    """The report of bench_train, a column a side; the last two lines are ours over the peer's."""
    sides = {"ours": report["ours"], **report["peers"]}
    rows = [
        (title, *("failed" if "error" in side else cell(side) for side in sides.values()))
        for title, cell in _TRAIN_ROWS.items()
    ]
    rows = [row for row in rows if any(row[1:])]  # no GPU, no GPU memory
    notes = [f"{n}: {side['error']}" for n, side in sides.items() if "error" in side]
    notes += _in_use(report["machine"])
    load = report["workload"]
    shared = f", {load['processes']} processes" if load["processes"] > 1 else ""
    return Table(
        (f"{load['name']}, {load['lengths']}{shared}", *sides),
        rows,
        (*notes, machine_line(report["machine"])),
    )


def gemm_table(report: dict[str, Any]) -> Table:
    """The report of bench_gemm, a line a product; rates in GFLOP/s, int8 in GOP/s."""
    kinds = list(report["products"][0]["gflops"])
    rows = []
    for product in report["products"]:
        shape = "x".join(str(product[name]) for name in ("rows", "inner", "columns"))
        found = [product["gflops"][kind] for kind in kinds]
        rates = ["-" if rate is None else f"{rate:,.0f}" for rate in found]
        rows.append((shape, product["layer"], f"{product['count']}", *rates))
    prepacked = report["int8_prepacked_gops"]
    notes = (
        f"All products at their best: {report['gemm_gflops']:,.0f} GFLOP/s, int8 "
        f"{report['int8_gops']:,.0f} GOP/s{f', prepacked {prepacked:,.0f}' if prepacked else ''}. "
        f"Memory {report['memory_gb_per_s']:,.1f} GB/s. "
        f"oneDNN ran {report['onednn_kernel'] or 'nothing it names'}.",
        machine_line(report["machine"]),
    )
    titles = tuple(kind.replace("_", " ") for kind in kinds)
    return Table(("rows x in x out", "layer", "count", *titles), rows, notes)


def prepare_table(report: dict[str, Any]) -> Table:
    """The report of bench_prepare, a column a side."""
    sides = {"ours": report["ours"], **report["peers"]}
    rows = [
        (title, *("failed" if "error" in side else cell(side) for side in sides.values()))
        for title, cell in _PREPARE_ROWS.items()
    ]
    notes = [f"{n}: {side['error']}" for n, side in sides.items() if "error" in side]
    title = f"{report['rows']:,} rows, {report['tokenizer']}"
    return Table((title, *sides), rows, (*notes, machine_line(report["machine"])))


def scale_table(report: dict[str, Any]) -> Table:
    """The report of bench_scale, a line a value."""
    titles = ("token/s", "MFU", "peak memory GiB", "step s")
    rows = [
        (
            f"{point['value']:,}",
            *("failed" if "error" in point else _TRAIN_ROWS[title](point) for title in titles),
        )
        for point in report["points"]
    ]
    notes = [f"{p['value']}: {p['error']}" for p in report["points"] if "error" in p]
    notes += _in_use(report["machine"])
    columns = (f"{report['workload']}, {report['over'].replace('-', ' ')}", *titles)
    return Table(columns, rows, (*notes, machine_line(report["machine"])))


def ranks_table(report: dict[str, Any]) -> Table:
    """The report of bench_ranks, a line a number of ranks, weak scaling and then strong."""
    rows: list[tuple[str, ...]] = [
        (
            f"{scaling}, {point['ranks']}",
            f"{point['tokens_per_s']:,.0f}",
            f"{point['efficiency']:.3f}",
            f"{point['mfu']:.3f}",
            f"{point['gemm_gflops']:,.0f}",
            f"{point['step_s']:.3g}",
            f"{100 * point['exchange_share']:.1f}",
            f"{point['rank_imbalance']:.3f}",
        )
        for scaling in ("weak", "strong")
        for point in report[scaling]
    ]
    columns = ("token/s", "efficiency", "MFU", "GFLOP/s", "step s", "exchange %", "imbalance")
    title = f"{report['workload']}, ranks of {report['cores']} cores"
    note = f"{report['collective']}, {report['gradient_mib']:.1f} MiB of gradients a step."
    return Table((title, *columns), rows, (note, machine_line(report["machine"])))


def quality_table(report: dict[str, Any]) -> Table:
    """The report of bench_quality: the base, then a line a side, its seeds' losses at the end."""
    seeds = range(report["seeds"])
    rows = [("base", f"{report['base']['heldout_loss']:.4f}", *[""] * (2 + len(seeds)))]
    for name, side in report["sides"].items():
        percent = side["to_plain_percent"]
        rows.append(
            (
                name,
                f"{side['heldout_loss']:.4f}",
                "" if percent is None else f"{percent:+.2f}",
                f"{side['tokens_per_s']:,.0f}",
                *(f"{run['heldout_loss']:.4f}" for run in side["runs"]),
            )
        )
    columns = ("held-out loss", "to plain, %", "token/s", *(f"seed {seed}" for seed in seeds))
    title = f"{report['steps']} steps"
    return Table((title, *columns), rows, (machine_line(report["machine"]),))


def plan_table(report: dict[str, Any]) -> Table:
    """The report of bench_plan, a line a case."""
    rows = [
        (
            case["name"],
            f"{case['row_tokens']:,}",
            case["layout"],
            *(f"{case[key]:.2f}" for key in ("predicted_gib", "real_gib")),
            f"{100 * case['memory_error']:+.1f}",
            *(f"{case[key]:.3g}" for key in ("predicted_s", "real_s")),
            f"{100 * case['time_error']:+.1f}",
        )
        for case in report["cases"]
    ]
    columns = ("largest row", "linear layers", "GiB predicted", "real", "%")
    times = ("step s predicted", "real", "%")
    return Table(("case", *columns, *times), rows, (machine_line(report["machine"]),))


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{machine['gpu'] + '; ' if 'gpu' in machine else ''}"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{' '.join(machine['isa'])}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}; load {machine['load']:.1f}"
    )


def _in_use(machine: dict[str, Any]) -> list[str]:
    if (spread := machine["gemm_spread"]) <= _QUIET:
        return []
    return [
        f"Not to be relied on: the GEMM rate differs {spread:.2f}-fold between runs, so "
        "something else was using these cores."
    ]


def _gib(side: dict[str, Any], name: str) -> str:
    return f"{side[name]:.2f}" if name in side else ""


def _ratio(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda side: f"{side[name]:.2f}" if name in side else ""


_TRAIN_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "token/s": lambda side: f"{side['tokens_per_s']:,.0f}",
    "supervised token/s": lambda side: f"{side['supervised_tokens_per_s']:,.0f}",
    "MFU": lambda side: f"{side['mfu']:.3f}",
    "GEMM GFLOP/s": lambda side: f"{side['gemm_gflops']:,.0f}",
    "peak memory GiB": lambda side: f"{side['peak_rss_gib']:.2f}",
    "peak GPU memory GiB": lambda side: _gib(side, "peak_gpu_gib"),
    "reserved GPU memory GiB": lambda side: _gib(side, "peak_gpu_reserved_gib"),
    "step s": lambda side: f"{side['step_s']:.3g}",
    "step s, p10-p90": lambda side: f"{side['step_s_p10']:.3g}-{side['step_s_p90']:.3g}",
    "token/s, ours/peer": _ratio("ratio"),
    "memory, ours/peer": _ratio("rss_ratio"),
}

_PREPARE_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "seconds": lambda side: f"{side['seconds']:.3g}",
    "row/s": lambda side: f"{side['rows_per_s']:,.0f}",
    "token/s": lambda side: f"{side['tokens_per_s']:,.0f}",
    "seconds, peer/ours": _ratio("ratio"),
}
