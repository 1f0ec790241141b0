"""The table and the plot of `bench collectives`; called from cli.bench."""

from typing import Any

from intel_ft.bench.collectives import CCL, COLLECTIVES
from intel_ft.bench.tables import machine_line
from intel_ft.plot import line_plot
from intel_ft.tables import Table


def collectives_table(report: dict[str, Any]) -> Table:
    """The report of bench_collectives, a line a collective and size."""
    done = {name: side for name, side in report["peers"].items() if "error" not in side}
    columns = [f"{report['ranks']} ranks", CCL, "bus GB/s"]
    for name in done:
        columns += [name, f"{name}/{CCL}"]
    rows = []
    for collective in [name for name in COLLECTIVES if name in report[CCL]]:
        for index, point in enumerate(report[CCL][collective]):
            cells = [f"{collective} {_size(point['bytes'])}", _time(point["seconds"])]
            cells.append(f"{point['bus_gb_per_s']:.3g}")
            for side in done.values():
                peer = side[collective][index]
                cells += [_time(peer["seconds"]), f"{peer['ratio']:.2f}"]
            rows.append(tuple(cells))
    notes = [f"{n}: {side['error']}" for n, side in report["peers"].items() if "error" in side]
    notes += [_model(name, side) for name, side in {CCL: report[CCL], **done}.items()]
    where = f"Hosts {', '.join(report['hosts'])}. " if report["hosts"] else ""
    notes.append(where + machine_line(report["machine"]))
    return Table(tuple(columns), rows, tuple(note for note in notes if note))


def plotted(report: dict[str, Any]) -> str:
    """The first collective's bus bandwidth over size, a panel a side, as SVG."""
    sides = {CCL: report[CCL], **report["peers"]}
    collective = next(name for name in COLLECTIVES if name in report[CCL])
    return line_plot(
        f"{collective} on {report['ranks']} ranks: bus bandwidth over size",
        "KiB",
        [point["bytes"] / 1024 for point in report[CCL][collective]],
        {
            f"{name}, GB/s": [point["bus_gb_per_s"] for point in side[collective]]
            for name, side in sides.items()
            if "error" not in side
        },
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _size(size: int) -> str:
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def _model(name: str, side: dict[str, Any]) -> str:
    if "fits" not in side:
        return ""
    algorithm, best = min(side["fits"].items(), key=lambda item: item[1]["median_error"])
    rate = 1e-9 / best["beta_s_per_byte"] if best["beta_s_per_byte"] else float("inf")
    return (
        f"{name} as {algorithm}: a message takes {best['alpha_s'] * 1e6:.1f} us and 1 s per "
        f"{rate:.2f} GB; off by {best['median_error']:.0%} in the median, at most "
        f"{best['worst_error']:.0%}."
    )
