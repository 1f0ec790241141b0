"""Tables of the benchmarks' reports, one function per report.

Columns and rows are named as a reader of the printed table needs them; the reports' own keys are
those of `--json`.
"""

from collections.abc import Callable
from typing import Any

from intel_ft.plurals import count_of, signed
from intel_ft.tables import Table

_QUIET = 1.1  # idle machines measured the same rate within 3 %


def train_table(report: dict[str, Any]) -> Table:
    """The report of bench_train, a column per contender; the last two rows are ours over theirs."""
    contenders = {"ours": report["ours"], **report["peers"]}
    rows = _result_rows(_TRAIN_ROWS, contenders)
    rows = [row for row in rows if any(row[1:])]  # no GPU, no GPU memory
    notes = [
        *_failures(contenders),
        *_unreliable(report["machine"]),
        *_implausible(contenders),
    ]
    workload = report["workload"]
    shared = f", {workload['processes']} processes" if workload["processes"] > 1 else ""
    return Table(
        (f"{workload['name']}, {workload['lengths']}{shared}", *contenders),
        rows,
        (*notes, machine_line(report["machine"])),
    )


def gemm_table(report: dict[str, Any]) -> Table:
    """The report of bench_gemm, a row per GEMM; rates in GFLOP/s, int8 in GOP/s."""
    kinds = list(report["products"][0]["gflops"])
    rows = []
    for gemm in report["products"]:
        shape = "x".join(str(gemm[name]) for name in ("rows", "inner", "columns"))
        rates = [gemm["gflops"][kind] for kind in kinds]
        cells = ["-" if rate is None else f"{rate:,.0f}" for rate in rates]
        shares = [_optional(gemm["register_share"], dtype) or "-" for dtype in _SHARES]
        rows.append((shape, gemm["layer"], f"{gemm['count']}", *cells, *shares))
    prepacked = report["int8_prepacked_gops"]
    notes = (
        f"Best rates over all GEMMs: {report['gemm_gflops']:,.0f} GFLOP/s, int8 "
        f"{report['int8_gops']:,.0f} GOP/s{f', prepacked {prepacked:,.0f}' if prepacked else ''}. "
        f"Memory bandwidth: {report['memory_gb_per_s']:,.1f} GB/s. "
        f"oneDNN kernel: {report['onednn_kernel'] or 'none reported'}.",
        *_register_note(report["registers"]),
        *_own_note(report["own"]),
        *_implausible({"GEMMs": report}),
        machine_line(report["machine"]),
    )
    titles = tuple(kind.replace("_", " ") for kind in kinds)
    return Table(("rows x in x out", "layer", "count", *titles, *_SHARES.values()), rows, notes)


_SHARES = {"bfloat16": "bf16 of registers", "int8": "int8 of registers"}
"""The columns of both directions' best rate as a share of the instruction's own, by dtype."""


def _register_note(registers: dict[str, dict[str, Any]]) -> list[str]:
    rates = []
    for one in registers.values():
        fast = one.get("back_to_back_gflops")
        back = "" if fast is None else f" (back to back {fast:,.0f})"
        rates.append(f"{one['instruction']} {one['gflops']:,.0f}{back}")
    return (
        [f"From registers alone, 10^9 operations per second: {', '.join(rates)}."] if rates else []
    )


def _own_note(own: dict[str, dict[str, float]]) -> list[str]:
    """Our own products over the whole set, a line per dtype."""
    notes = []
    for dtype, rates in own.items():
        shares = [
            f"{rates[key]:.2f} of {name}"
            for key, name in (
                ("register_share", "the register rate"),
                ("back_to_back_share", "the one of instructions back to back"),
            )
            if key in rates
        ]
        notes.append(
            f"Our own GEMMs, {dtype}, all of them: {rates['gflops']:,.0f} GFLOP/s, "
            f"{rates['over_onednn']:.2f} times oneDNN's fastest (forward "
            f"{rates['over_onednn_forward']:.2f}, input gradient "
            f"{rates['over_onednn_gradient']:.2f})"
            + "".join(f", {share}" for share in shares)
            + "."
        )
    return notes


def prepare_table(report: dict[str, Any]) -> Table:
    """The report of bench_prepare, a column per contender."""
    contenders = {"ours": report["ours"], **report["peers"]}
    rows = _result_rows(_PREPARE_ROWS, contenders)
    title = f"{count_of(report['rows'], 'row')}, {report['tokenizer']}"
    notes = (*_failures(contenders), machine_line(report["machine"]))
    return Table((title, *contenders), rows, notes)


def scale_table(report: dict[str, Any]) -> Table:
    """The report of bench_scale, a row per value."""
    titles = ("token/s", "MFU", "peak memory GiB", "step s")
    rows = [
        (
            f"{point['value']:,}",
            *("failed" if "error" in point else _TRAIN_ROWS[title](point) for title in titles),
        )
        for point in report["points"]
    ]
    notes = _failures({point["value"]: point for point in report["points"]})
    notes += _unreliable(report["machine"])
    notes += _implausible({point["value"]: point for point in report["points"]})
    columns = (f"{report['workload']}, {report['over'].replace('-', ' ')}", *titles)
    return Table(columns, rows, (*notes, machine_line(report["machine"])))


def ranks_table(report: dict[str, Any]) -> Table:
    """The report of bench_ranks, a row per number of ranks: weak scaling, then strong."""
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
    title = f"{report['workload']}, ranks of {count_of(report['cores'], 'core')}"
    note = f"Gradients: {report['gradient_mib']:.1f} MiB per step over {report['collective']}."
    implausible = _implausible(
        {
            f"{scaling}, {point['ranks']}": point
            for scaling in ("weak", "strong")
            for point in report[scaling]
        }
    )
    notes = (note, *implausible, machine_line(report["machine"]))
    return Table((title, *columns), rows, notes)


def quality_table(report: dict[str, Any]) -> Table:
    """The report of bench_quality: the base, then a row per contender; each seed's loss last."""
    seeds = range(report["seeds"])
    rows = [("base", f"{report['base']['heldout_loss']:.4f}", *[""] * (2 + len(seeds)))]
    for name, contender in report["sides"].items():
        percent = contender["to_plain_percent"]
        rows.append(
            (
                name,
                f"{contender['heldout_loss']:.4f}",
                "" if percent is None else signed(percent, 2),
                f"{contender['tokens_per_s']:,.0f}",
                *(f"{run['heldout_loss']:.4f}" for run in contender["runs"]),
            )
        )
    columns = ("validation loss", "vs. plain, %", "token/s", *(f"seed {seed}" for seed in seeds))
    title = count_of(report["steps"], "step")
    return Table((title, *columns), rows, (machine_line(report["machine"]),))


def plan_table(report: dict[str, Any]) -> Table:
    """The report of bench_plan, a row per case."""
    rows = [
        (
            case["name"],
            f"{case['row_tokens']:,}",
            case["layout"],
            *(f"{case[key]:.2f}" for key in ("predicted_gib", "real_gib")),
            signed(100 * case["memory_error"]),
            *(f"{case[key]:.3g}" for key in ("predicted_s", "real_s")),
            signed(100 * case["time_error"]),
        )
        for case in report["cases"]
    ]
    columns = ("longest row", "linear layers", "GiB predicted", "GiB measured", "error %")
    times = ("step s predicted", "step s measured", "error %")
    return Table(("case", *columns, *times), rows, (machine_line(report["machine"]),))


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{machine['gpu'] + '; ' if 'gpu' in machine else ''}"
        f"{machine['cpu']}, {count_of(machine['cores'], 'core')}, "
        f"{count_of(machine['threads'], 'thread')}, "
        f"{' '.join(machine['isa'])}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}; load {machine['load']:.1f}"
    )


def _result_rows(
    cells: dict[str, Callable[[dict[str, Any]], str]], contenders: dict[str, Any]
) -> list[tuple[str, ...]]:
    """A row per title, with a cell for each contender."""
    return [
        (title, *("failed" if "error" in one else cell(one) for one in contenders.values()))
        for title, cell in cells.items()
    ]


def _failures(results: dict[Any, dict[str, Any]]) -> list[str]:
    """Why each contender or value that failed did so."""
    return [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]


def _unreliable(machine: dict[str, Any]) -> list[str]:
    if (spread := machine["gemm_spread"]) <= _QUIET:
        return []
    return [
        f"Unreliable: GEMM rates differed by a factor of {spread:.2f} between runs, so other "
        "programs were using these cores."
    ]


def _implausible(results: dict[Any, dict[str, Any]]) -> list[str]:
    """That results with rates above the registers' own cannot be true."""
    return [
        f"Unreliable: {name}: {'; '.join(reasons)}. No GEMM can be faster than its instruction: "
        "the machine's speed changed between the measurements."
        for name, result in results.items()
        if (reasons := result.get("unreliable"))
    ]


def _optional(result: dict[str, Any], name: str, form: str = ".2f") -> str:
    return f"{result[name]:{form}}" if name in result else ""


def _ratio(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda result: f"{result[name]:.2f}" if name in result else ""


_TRAIN_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "token/s": lambda result: f"{result['tokens_per_s']:,.0f}",
    "pairs/s": lambda result: f"{result['pairs_per_s']:.3g}" if "pairs_per_s" in result else "",
    "supervised token/s": lambda result: f"{result['supervised_tokens_per_s']:,.0f}",
    "MFU": lambda result: f"{result['mfu']:.3f}",
    "utilization": lambda result: _optional(result, "utilization", ".3f"),
    "GEMM GFLOP/s": lambda result: f"{result['gemm_gflops']:,.0f}",
    "register GFLOP/s": lambda result: _optional(result, "register_gflops", ",.0f"),
    "peak memory GiB": lambda result: f"{result['peak_rss_gib']:.2f}",
    "peak GPU memory GiB": lambda result: _optional(result, "peak_gpu_gib"),
    "reserved GPU memory GiB": lambda result: _optional(result, "peak_gpu_reserved_gib"),
    "step s": lambda result: f"{result['step_s']:.3g}",
    "step s, p10-p90": lambda result: f"{result['step_s_p10']:.3g}-{result['step_s_p90']:.3g}",
    "token/s, ours/peer": _ratio("ratio"),
    "memory, ours/peer": _ratio("rss_ratio"),
}

_PREPARE_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "seconds": lambda result: f"{result['seconds']:.3g}",
    "row/s": lambda result: f"{result['rows_per_s']:,.0f}",
    "token/s": lambda result: f"{result['tokens_per_s']:,.0f}",
    "seconds, peer/ours": _ratio("ratio"),
    "seconds, second run": _ratio("again_seconds"),
    "peak memory GiB": lambda result: _optional(result, "peak_gib"),
}
