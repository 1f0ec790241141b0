"""The table and the plot of `bench collectives`."""

from typing import Any

from intel_ft.bench.collectives import CCL, COLLECTIVES
from intel_ft.bench.tables import machine_line
from intel_ft.plot import line_plot
from intel_ft.plurals import count_of
from intel_ft.tables import Table


def collectives_table(report: dict[str, Any]) -> Table:
    """The report of bench_collectives, a row per collective and size."""
    peers = {name: result for name, result in report["peers"].items() if "error" not in result}
    columns = [count_of(report["ranks"], "rank"), CCL, "bus GB/s"]
    for name in peers:
        columns += [name, f"{name}/{CCL}"]
    rows = []
    for collective in _measured(report):
        for index, point in enumerate(report[CCL][collective]):
            cells = [f"{collective} {_size(point['bytes'])}", _time(point["seconds"])]
            cells.append(f"{point['bus_gb_per_s']:.3g}")
            for result in peers.values():
                peer = result[collective][index]
                cells += [_time(peer["seconds"]), f"{peer['ratio']:.2f}"]
            rows.append(tuple(cells))
    notes = [f"{n}: {result['error']}" for n, result in report["peers"].items() if n not in peers]
    notes += [_model(name, result) for name, result in {CCL: report[CCL], **peers}.items()]
    hosts = f"Hosts {', '.join(report['hosts'])}. " if report["hosts"] else ""
    notes.append(hosts + machine_line(report["machine"]))
    return Table(tuple(columns), rows, tuple(note for note in notes if note))


def plotted(report: dict[str, Any]) -> str:
    """The first collective's bus bandwidth over size, a panel per contender, as SVG."""
    contenders = {CCL: report[CCL], **report["peers"]}
    collective = _measured(report)[0]
    return line_plot(
        f"{collective} on {count_of(report['ranks'], 'rank')}: bus bandwidth over size",
        "KiB",
        [point["bytes"] / 1024 for point in report[CCL][collective]],
        {
            f"{name}, GB/s": [point["bus_gb_per_s"] for point in result[collective]]
            for name, result in contenders.items()
            if "error" not in result
        },
    )


def _measured(report: dict[str, Any]) -> list[str]:
    return [name for name in COLLECTIVES if name in report[CCL]]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _size(size: int) -> str:
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def _model(name: str, result: dict[str, Any]) -> str:
    """The alpha-beta model that fits best, as a sentence."""
    if "fits" not in result:
        return ""
    algorithm, best = min(result["fits"].items(), key=lambda item: item[1]["median_error"])
    rate = 1e-9 / best["beta_s_per_byte"] if best["beta_s_per_byte"] else float("inf")
    return (
        f"{name}, modelled as a {algorithm} all-reduce: {best['alpha_s'] * 1e6:.1f} us per "
        f"message, {rate:.2f} GB/s; median error {best['median_error']:.0%}, largest "
        f"{best['worst_error']:.0%}."
    )
