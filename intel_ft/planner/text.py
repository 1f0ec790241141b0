"""A plan as lines of text, and a sweep as a table."""

from collections.abc import Callable
from typing import Any

from intel_ft.plurals import count_of
from intel_ft.tables import Table


def lines(report: dict[str, Any]) -> list[str]:
    """The report of planner.plan, one fact per line."""
    return [*model_lines(report), *size_lines(report), *time_lines(report)]


def model_lines(report: dict[str, Any]) -> list[str]:
    """The lines about the model, which need neither data nor a machine."""
    model = report["model"]
    share = 100 * model["trainable"] / model["parameters"]
    return _aligned(
        report,
        [
            ("model", f"{model['name']}: {model['parameters']:,} parameters{_active(model)}"),
            (
                "trained",
                f"{model['trainable']:,} ({share:.2f} %); decoder layers: {model['layers']}",
            ),
            *((one["name"], f"{one['value']} ({one['reason']})") for one in model["decisions"]),
        ],
    )


def size_lines(report: dict[str, Any]) -> list[str]:
    """The lines about data, memory and checkpoints, which need no rate of a machine."""
    memory, saved = report["memory"], report["checkpoint"]
    return _aligned(
        report,
        [
            ("data", report["data"]["source"]),
            ("", ""),
            ("memory", _verdict(memory)),
            *((f"  {_words(name)}", f"{g:8.2f} GiB") for name, g in memory["parts"].items() if g),
            (
                "  total",
                f"{memory['total']:8.2f} GiB per rank, longest row {memory['row_tokens']:,} tokens",
            ),
            *_node(memory["node"]),
            ("row limit", _row_limit(memory["largest_row"])),
            ("rows", _rows(memory["rows"])),
            *(("change", text) for text in report["change"]),
            (
                "checkpoints",
                f"{_size(saved['each'])} each, of which weights {_size(saved['weights'])}; "
                f"{_size(saved['kept'])} for all that are kept",
            ),
            ("", ""),
        ],
    )


def time_lines(report: dict[str, Any]) -> list[str]:
    """The lines about the cluster and the time that it takes."""
    cluster, step, run = report["cluster"], report["step"], report["run"]
    return _aligned(
        report,
        [
            (
                "cluster",
                f"{count_of(cluster['nodes'], 'node')} of {cluster['node']}, {_ranks(cluster)}, "
                f"{cluster['dtype']}",
            ),
            (
                "per node",
                f"{_gemm_rates(cluster)}, memory {cluster['memory_gb_per_s']:,.0f} GB/s "
                f"({cluster['source']})",
            ),
            *_layers(cluster),
            (
                "per step",
                f"{step['tokens']:,.0f} tokens, {step['flops'] / 1e12:,.3g} TFLOP: "
                f"{_duration(step['seconds'])}, {step['tokens_per_s']:,.0f} token/s, "
                f"MFU {step['mfu']:.2f}",
            ),
            *_shared(step),
            ("  of which", _parts(step)),
            (
                "ranks",
                f"{100 * step['communication_share']:.1f} % of a step in collectives "
                f"({step['collective']}), {100 * step['waiting_share']:.1f} % waiting for the "
                "slowest rank",
            ),
            ("the run", _run(run)),
            *([] if run["kwh"] is None else [("energy", f"{run['kwh']:,.2f} kWh")]),
        ],
    )


def _aligned(report: dict[str, Any], facts: list[tuple[str, str]]) -> list[str]:
    """The facts in two columns; only names of decisions may have more than 15 letters."""
    width = max(15, *(len(one["name"]) for one in report["model"]["decisions"]), 0) + 2
    return [f"{name:<{width}}{text}".rstrip() for name, text in facts]


def _active(model: dict[str, Any]) -> str:
    """How many of a mixture's parameters a token uses."""
    used = model["active"] != model["parameters"]
    return f", of which a token uses {model['active']:,}" if used else ""


def sweep_table(points: list[dict[str, Any]], over: str) -> Table:
    """A row per value; times of the whole run, memory of one rank."""
    rows: list[tuple[str, ...]] = [
        (
            f"{point['value']:,}",
            f"{point['memory']['total']:.1f}",
            "yes" if point["memory"]["fits"] else "no",
            f"{point['step']['seconds']:.3g}",
            f"{point['step']['tokens_per_s']:,.0f}",
            f"{point['step']['mfu']:.2f}",
            f"{100 * point['step']['communication_share']:.1f}",
            _or_unknown(point["run"]["seconds"], lambda seconds: f"{seconds / 3600:,.2f}"),
            _or_unknown(point["run"]["kwh"], lambda kwh: f"{kwh:,.1f}"),
        )
        for point in points
    ]
    titles = ("GiB per rank", "fits", "step s", "token/s", "MFU", "exchange %", "hours", "kWh")
    return Table((over.replace("-", " "), *titles), rows)


def _or_unknown(value: float | None, written: Callable[[float], str]) -> str:
    return "" if value is None else written(value)


def _layers(cluster: dict[str, Any]) -> list[tuple[str, str]]:
    """How far layers are from the roofline, or how to measure it; empty for other machines."""
    if cluster["slowdown"] != 1:
        return [("layers", f"measured at {cluster['slowdown']:.2f} times the roofline's time")]
    if cluster["measured_here"]:
        return [("layers", "predicted by the roofline alone; --measure times some (a minute)")]
    return []


def _verdict(memory: dict[str, Any]) -> str:
    sizes = f"{memory['needed']:.1f} of {memory['available']:.1f} GiB needed per rank"
    return f"{'fits' if memory['fits'] else 'DOES NOT FIT'}: {sizes}; weights {memory['layout']}"


def _node(node: dict[str, float] | None) -> list[tuple[str, str]]:
    """The sum over the ranks of a node, where there are several and they share its memory."""
    if node is None or node["ranks"] == 1:
        return []
    sizes = f"{node['needed']:8.2f} of {node['available']:.2f} GiB"
    return [("  per node", f"{sizes} needed by {count_of(node['ranks'], 'rank')}")]


def _row_limit(tokens: int) -> str:
    """The longest row that fits, with the config's other settings."""
    if tokens == 0:
        return "no row fits, not even the shortest"
    return f"{tokens:,} tokens per row at most, limited by memory"


def _shared(step: dict[str, Any]) -> list[tuple[str, str]]:
    """What a step does not compute again because examples begin alike."""
    saved = step["tokens"] - step["computed_tokens"]
    if saved < 0.5:
        return []
    share = f"{100 * step['shared_prefix_share']:.1f} %"
    return [("  shared", f"{saved:,.0f} tokens ({share}) are not computed again: shared prefixes")]


def _rows(rows: list[dict[str, float]]) -> str:
    pairs = (f"{r['tokens']:,}: {r['total']:.1f} ({r['total_checkpointing']:.1f})" for r in rows)
    return f"GiB per rank by row length (with checkpointing): {', '.join(pairs)}"


def _run(run: dict[str, Any]) -> str:
    if run["steps"] is None:
        return (
            "number of steps and time unknown, because the data was not read: --examples assumes "
            "a number of examples"
        )
    parts = [f"{count_of(run['steps'], 'step')}: {_duration(run['seconds'])}"]
    if run["evaluation_seconds"] is None:
        parts.append("without evaluation, whose data was not read")
    else:
        parts.append(f"of which evaluation {_duration(run['evaluation_seconds'])}")
    if run["reference_seconds"] is None:
        parts.append("without the reference model, because the data was not read")
    elif run["reference_seconds"]:
        parts.append(f"the reference model {_duration(run['reference_seconds'])}")
    return ", ".join(parts)


def _parts(step: dict[str, Any]) -> str:
    return ", ".join(
        f"{_words(name)} {100 * seconds / step['seconds']:.0f} %"
        for name, seconds in step["parts"].items()
        if seconds
    )


def _gemm_rates(cluster: dict[str, Any]) -> str:
    rate = f"{cluster['gemm_gflops']:,.0f} GFLOP/s"
    return rate if cluster["gpu"] else f"{rate}, int8 {cluster['int8_gops']:,.0f} GOP/s"


def _ranks(cluster: dict[str, Any]) -> str:
    ranks = count_of(cluster["ranks"], "rank")
    if cluster["gpu"]:
        return f"{ranks} in total, one GPU each"
    return f"{ranks} in total, {count_of(cluster['threads'], 'thread')} each"


def _words(name: str) -> str:
    return {"mapped": "mapped file"}.get(name, name.replace("_", " "))


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
