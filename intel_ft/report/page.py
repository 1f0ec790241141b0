"""`report`: one HTML page of one or several runs, self-contained; called from cli.report.

It loads nothing from anywhere: style and charts are in it, and its Content-Security-Policy forbids
the rest. Every text from a run's folder goes through `text_of`.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intel_ft.report.charts import bar_chart, line_chart, text_of
from intel_ft.report.read_run import RunRecords, number, read_run
from intel_ft.report.statistics import (
    combined,
    histogram,
    last,
    numbers,
    points,
    shown,
    speeds,
    spread,
    values_of,
)
from intel_ft.report.style import STYLE

_DATA_FACTS = (
    *("source", "format", "template", "loss_on", "rows", "examples", "truncated", "dropped"),
    *("tokens", "supervised_tokens", "longest"),
)


def report(folders: list[Path]) -> str:
    """The page. Raises UserError for a folder that is no run's."""
    runs = [read_run(folder) for folder in folders]
    names = " and ".join(run.name for run in runs)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width">',
            f"<title>{text_of(names)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{text_of(names)}</h1>",
            _legend(runs),
            *_missing(runs),
            "<h2>Summary</h2>",
            _table(["", *(run.name for run in runs)], _summary(runs)),
            "<h2>Training</h2>",
            _figures(_curves(runs)),
            "<h2>Data</h2>",
            *_data(runs),
            "<h2>Checkpoints</h2>",
            *(_checkpoints(run, len(runs) > 1) for run in runs),
            *_samples(runs),
            "<h2>Environment</h2>",
            *_environment(runs),
            "<h2>Configuration</h2>",
            *_configuration(runs),
            "</body></html>\n",
        ]
    )


def _legend(runs: list[RunRecords]) -> str:
    if len(runs) == 1:
        return ""
    chips = (
        f'<span><svg class="chip" viewBox="0 0 30 8"><path class="line c{index % 6}" d="M0 4H30"/>'
        f"</svg> {text_of(run.name)}</span>"
        for index, run in enumerate(runs)
    )
    return f'<p class="legend">{" ".join(chips)}</p>'


def _missing(runs: list[RunRecords]) -> list[str]:
    """What each run's folder lacks."""
    lines = [
        f"<li>{text_of(f'{run.name}: ' if len(runs) > 1 else '')}{text_of(line)}</li>"
        for run in runs
        for line in run.missing
    ]
    return [f'<ul class="missing">{"".join(lines)}</ul>'] if lines else []


def _summary(runs: list[RunRecords]) -> list[list[str]]:
    facts: dict[str, Callable[[RunRecords], str]] = {
        "state": lambda run: "finished" if run.finished else "not finished",
        "steps": lambda run: last(run.steps, "step"),
        "last training loss": lambda run: last(run.steps, "loss"),
        "best evaluation loss": lambda run: combined(min, values_of(run.evaluations, "eval_loss")),
        "its perplexity": lambda run: combined(min, values_of(run.evaluations, "eval_perplexity")),
        "tokens trained on": lambda run: combined(sum, values_of(run.steps, "tokens")),
        "token/s, median": lambda run: combined(statistics.median, speeds(run, "tokens_per_s")),
        "MFU, median": lambda run: combined(statistics.median, speeds(run, "mfu")),
        "measured peak": lambda run: _decision(run, "MFU's peak"),
        "step s, median": lambda run: combined(statistics.median, speeds(run, "step_s")),
        "step s, p10-p90": lambda run: spread(speeds(run, "step_s")),
        "peak memory of rank 0, GiB": lambda run: combined(max, values_of(run.steps, "rss_gib")),
        "rank imbalance, mean": lambda run: combined(
            statistics.fmean, values_of(run.steps, "rank_imbalance")
        ),
        "ranks x threads": lambda run: (
            f"{run.environment.get('ranks', '?')} x {run.environment.get('threads', '?')}"
        ),
    }
    return [[name, *(fact(run) for run in runs)] for name, fact in facts.items()]


def _curves(runs: list[RunRecords]) -> list[str]:
    def over_steps(key: str, *, evaluations: bool = False) -> list[Any]:
        return [
            (index, run.name, points(run.evaluations if evaluations else run.steps, key))
            for index, run in enumerate(runs)
        ]

    ranked = any((number(run.environment, "ranks") or 1) > 1 for run in runs)
    charts = [
        line_chart("training loss, nats a token", over_steps("loss")),
        line_chart("evaluation loss", over_steps("eval_loss", evaluations=True)),
        line_chart("token/s", over_steps("tokens_per_s"), from_zero=True),
        line_chart(
            "MFU: share of the measured peak",
            over_steps("mfu"),
            from_zero=True,
            reference=(1.0, "what these cores' matrix products reach"),
        ),
        line_chart("memory of rank 0, GiB", over_steps("rss_gib"), from_zero=True),
        line_chart("learning rate", over_steps("lr"), from_zero=True),
        line_chart("gradient norm", over_steps("grad_norm"), from_zero=True),
    ]
    if ranked:
        imbalance = over_steps("rank_imbalance")
        charts.append(line_chart("rank imbalance: dearest share over the mean", imbalance))
    for index, run in enumerate(runs):
        edges, counts = histogram(values_of(run.steps, "step_s"))
        name = f", {run.name}" if len(runs) > 1 else ""
        charts.append(bar_chart(f"steps by their time{name}", index, edges, counts, "seconds"))
    return charts


def _data(runs: list[RunRecords]) -> list[str]:
    columns, parts, charts = [""], [], []
    for index, run in enumerate(runs):
        data = run.environment.get("data")
        for name in ("train", "eval"):
            part = data.get(name) if isinstance(data, dict) else None
            if not isinstance(part, dict):
                continue
            title = f"{run.name}, {name}" if len(runs) > 1 else name
            columns.append(title)
            parts.append(part)
            lengths = part.get("lengths")
            if isinstance(lengths, dict):
                edges, counts = (numbers(lengths.get(key)) for key in ("edges", "counts"))
                charts.append(
                    bar_chart(f"examples by their tokens, {title}", index, edges, counts, "tokens")
                )
    if not parts:
        return ["<p>No statistics were recorded.</p>"]
    rows = [
        [fact.replace("_", " "), *(shown(part.get(fact, "")) for part in parts)]
        for fact in _DATA_FACTS
    ]
    return [_table(columns, rows), _figures(charts)]


def _checkpoints(run: RunRecords, named: bool) -> str:
    title = f"<h3>{text_of(run.name)}</h3>" if named else ""
    rows = [
        [f"{checkpoint.step}", f"{checkpoint.size / 2**20:,.1f}", checkpoint.problem or "whole"]
        for checkpoint in run.checkpoints
    ]
    return title + (_table(["step", "MiB", "state"], rows) if rows else "<p>None.</p>")


def _samples(runs: list[RunRecords]) -> list[str]:
    rows = [
        [run.name, *(shown(sample.get(key, "")) for key in ("prompt", "before", "after"))]
        for run in runs
        for sample in run.samples[:20]
    ]
    if not rows:
        return []
    return ["<h2>Samples</h2>", _table(["run", "prompt", "before", "after"], rows, "samples")]


def _environment(runs: list[RunRecords]) -> list[str]:
    facts: dict[str, list[str]] = {}
    for index, run in enumerate(runs):
        for name, value in run.environment.items():
            if name in ("decisions", "data"):
                continue
            entries = value.items() if isinstance(value, dict) else [("", value)]
            for key, inner in entries:
                cells = facts.setdefault(f"{name} {key}".strip(), [""] * len(runs))
                cells[index] = shown(inner)
    found = [_table(["", *(run.name for run in runs)], [[k, *v] for k, v in facts.items()])]
    for run in runs:
        rows = [
            [shown(decision.get(key, "")) for key in ("name", "value", "reason")]
            for decision in _decisions(run)
        ]
        if rows:
            found.append(f"<h3>Decided{text_of(f', {run.name}' if len(runs) > 1 else '')}</h3>")
            found.append(_table(["", "value", "reason"], rows))
    return found


def _configuration(runs: list[RunRecords]) -> list[str]:
    """What differs between the runs, then each file as it is."""
    found = []
    if len(runs) > 1:
        keys = dict.fromkeys(key for run in runs for key in run.config)
        values = {key: [run.config.get(key, "") for run in runs] for key in keys}
        rows = [[key, *cells] for key, cells in values.items() if len(set(cells)) > 1]
        found.append("<h3>Where they differ</h3>")
        found.append(_table(["", *(run.name for run in runs)], rows))
    for run in runs:
        found.append(f"<h3>{text_of(run.name)}</h3>" if len(runs) > 1 else "")
        found.append(f"<pre>{text_of(run.config_text)}</pre>")
    return found


def _table(columns: list[str], rows: list[list[str]], kind: str = "") -> str:
    head = "".join(f"<th>{text_of(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{text_of(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figures(charts: list[str]) -> str:
    drawn = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    return f'<div class="charts">{drawn}</div>' if drawn else "<p>Nothing to draw.</p>"


def _decisions(run: RunRecords) -> list[dict[str, Any]]:
    found = run.environment.get("decisions")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _decision(run: RunRecords, name: str) -> str:
    return next((shown(d.get("value", "")) for d in _decisions(run) if d.get("name") == name), "-")
