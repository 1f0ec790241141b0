"""The report: one self-contained HTML page of one or several runs.

It loads nothing from anywhere: style and charts are in it, and its Content-Security-Policy forbids
the rest. The template escapes every text that comes from a run's folder.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from intel_ft.report.charts import bar_chart, legend_line, line_chart, printable
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

_DATA_FACTS = (
    *("source", "notes", "format", "unused", "template", "loss_on"),
    *("rows", "bad", "examples", "truncated", "dropped", "split", "separated"),
    *("untrained", "context_only"),
    *("tokens", "supervised_tokens", "longest"),
)
_MAX_SAMPLES = 20  # per run
_LONGEST = 10_000  # characters of a part of an example


def report(folders: list[Path]) -> str:
    """The page. Raises UserError for a folder that is not a run's."""
    runs = [read_run(folder) for folder in folders]
    several = len(runs) > 1
    data_columns, data_rows, length_charts = _data(runs)
    return str(
        _template().render(
            runs=runs,
            several=several,
            title=" and ".join(run.name for run in runs),
            names=["", *(run.name for run in runs)],
            legend_line=legend_line,
            missing=[
                f"{run.name}: {line}" if several else line for run in runs for line in run.missing
            ],
            summary=_summary(runs),
            curves=_curves(runs),
            data_columns=data_columns,
            data_rows=data_rows,
            length_charts=length_charts,
            checkpoint_rows=_checkpoint_rows,
            samples=_samples(runs),
            examples=_examples(runs),
            experts=_experts(runs),
            environment=_environment(runs),
            decisions=[(run, _decision_rows(run)) for run in runs],
            differences=_differences(runs),
        )
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("intel_ft.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
    )
    return environment.get_template("page.html.jinja")


def _summary(runs: list[RunRecords]) -> list[list[str]]:
    facts: dict[str, Callable[[RunRecords], str]] = {
        "state": lambda run: "finished" if run.finished else "not finished",
        "steps": lambda run: last(run.steps, "step"),
        "last training loss": lambda run: last(run.steps, "loss"),
        "best validation loss": lambda run: combined(min, values_of(run.evaluations, "eval_loss")),
        "best validation perplexity": lambda run: combined(
            min, values_of(run.evaluations, "eval_perplexity")
        ),
        "best validation accuracy": lambda run: combined(
            max, values_of(run.evaluations, "eval_accuracy")
        ),
        "tokens trained on": lambda run: combined(sum, values_of(run.steps, "tokens")),
        "shared prefixes, share of tokens": _shared_prefixes,
        "token/s, median": lambda run: combined(statistics.median, speeds(run, "tokens_per_s")),
        "MFU, median": lambda run: combined(statistics.median, speeds(run, "mfu")),
        "utilization, median": lambda run: combined(statistics.median, speeds(run, "utilization")),
        "measured GEMM peak": _gemm_peak,
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
    rows = [[name, *(fact(run) for run in runs)] for name, fact in facts.items()]
    return [row for row in rows if "accuracy" not in row[0] or {*row[1:]} != {"-"}]


def _shared_prefixes(run: RunRecords) -> str:
    """The share of the tokens that was not computed again, because examples begin alike."""
    steps = [(number(step, "tokens"), number(step, "computed_tokens")) for step in run.steps]
    tokens = sum(count for count, _ in steps if count)
    if tokens <= 0:
        return "-"
    computed = sum(count if some is None else some for count, some in steps if count)
    return f"{100 * max(0.0, 1 - computed / tokens):.1f} %"


def _curves(runs: list[RunRecords]) -> list[Markup]:
    def over_steps(key: str, *, evaluations: bool = False) -> list[Any]:
        return [
            (index, run.name, points(run.evaluations if evaluations else run.steps, key))
            for index, run in enumerate(runs)
        ]

    compares = any(run.config.get("method.name") in ("preference", "reward") for run in runs)
    unit = "" if compares else ", nats per token"
    has_ranks = any((number(run.environment, "ranks") or 1) > 1 for run in runs)
    charts = [
        line_chart(f"training loss{unit}", over_steps("loss")),
        line_chart(f"validation loss{unit}", over_steps("eval_loss", evaluations=True)),
        *_comparisons(over_steps),
        line_chart("token/s", over_steps("tokens_per_s"), from_zero=True),
        line_chart(
            "MFU, as a share of the measured GEMM peak",
            over_steps("mfu"),
            from_zero=True,
            reference=(1.0, "measured GEMM peak"),
        ),
        line_chart("memory of rank 0, GiB", over_steps("rss_gib"), from_zero=True),
        line_chart("learning rate", over_steps("lr"), from_zero=True),
        line_chart("gradient norm", over_steps("grad_norm"), from_zero=True),
        line_chart("entropy of the experts' load, 1 if even", over_steps("expert_entropy")),
    ]
    if has_ranks:
        title = "rank imbalance: most expensive share over the mean"
        charts.append(line_chart(title, over_steps("rank_imbalance")))
    for index, run in enumerate(runs):
        edges, counts = histogram(values_of(run.steps, "step_s"))
        name = f", {run.name}" if len(runs) > 1 else ""
        charts.append(bar_chart(f"step times{name}", index, edges, counts, "seconds"))
    return [chart for chart in charts if chart]


def _comparisons(over_steps: Callable[..., list[Any]]) -> list[Markup]:
    """The charts of preference methods; empty ones for others."""
    return [
        line_chart(f"{title}{of}", over_steps(f"{prefix}{key}", evaluations=bool(prefix)))
        for key, title in (
            ("accuracy", "accuracy"),
            ("reward_margin", "reward of chosen minus rejected answers"),
            ("reward_chosen", "reward of chosen answers"),
            ("reward_rejected", "reward of rejected answers"),
            ("kl", "KL from the reference (kto's z), nats per answer"),
        )
        for prefix, of in (("", ", training"), ("eval_", ", validation"))
    ]


def _data(runs: list[RunRecords]) -> tuple[list[str], list[list[str]], list[Markup]]:
    """Columns and rows of the datasets' statistics, and charts of their lengths."""
    columns, parts, charts = [], [], []
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
                    bar_chart(f"example lengths, {title}", index, edges, counts, "tokens")
                )
    if not parts:
        return [], [], []
    rows = [
        [fact.replace("_", " "), *(shown(part.get(fact, "")) for part in parts)]
        for fact in _DATA_FACTS
    ]
    return ["", *columns], rows, [chart for chart in charts if chart]


def _checkpoint_rows(run: RunRecords) -> list[list[str]]:
    return [
        [f"{checkpoint.step}", f"{checkpoint.size / 2**20:,.1f}", checkpoint.problem or "complete"]
        for checkpoint in run.checkpoints
    ]


def _samples(runs: list[RunRecords]) -> list[list[str]]:
    return [
        [run.name, *(shown(sample.get(key, "")) for key in ("prompt", "before", "after"))]
        for run in runs
        for sample in run.samples[:_MAX_SAMPLES]
    ]


def _examples(runs: list[RunRecords]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Of each training example a title, and the parts of its text with whether they are trained."""
    found = []
    for run in runs:
        for index, example in enumerate(run.examples[:_MAX_SAMPLES], 1):
            parts = example.get("parts")
            pairs = [
                (_shortened(str(part[0])), part[1] is True)
                for part in (parts if isinstance(parts, list) else [])
                if isinstance(part, list) and len(part) == 2
            ]
            counts = (shown(example.get(key, "")) for key in ("tokens", "trained"))
            title = "{}, example {}: {} tokens, {} trained on".format(run.name, index, *counts)
            found.append((title, pairs))
    return found


def _shortened(text: str) -> str:
    """The text, or its beginning and how much more there is."""
    rest = len(text) - _LONGEST
    return text if rest <= 0 else f"{text[:_LONGEST]} [{rest:,} more characters]"


def _experts(runs: list[RunRecords]) -> list[list[str]]:
    """Of each mixture: its tokens, their entropy, and the experts with the fewest and the most."""
    rows = []
    for run in runs:
        layers, tokens = (run.expert_load.get(key) for key in ("layers", "tokens"))
        entropies = numbers(run.expert_load.get("entropy"))
        for index, layer in enumerate(layers if isinstance(layers, list) else []):
            found = tokens[index] if isinstance(tokens, list) and index < len(tokens) else []
            if not (counts := numbers(found)):
                continue
            middle = statistics.median(counts)
            spread = entropies[index] if index < len(entropies) else 0.0
            figures = (sum(counts), min(counts), middle, max(counts), counts.count(0))
            cells = [f"{spread:.3f}", *(f"{figure:,.0f}" for figure in figures)]
            rows.append([run.name, shown(layer), *cells])
    return rows


def _environment(runs: list[RunRecords]) -> list[list[str]]:
    facts: dict[str, list[str]] = {}
    for index, run in enumerate(runs):
        for name, value in run.environment.items():
            if name in ("decisions", "data"):
                continue
            entries = value.items() if isinstance(value, dict) else [("", value)]
            for key, inner in entries:
                cells = facts.setdefault(f"{name} {key}".strip(), [""] * len(runs))
                cells[index] = shown(inner)
    return [[name, *cells] for name, cells in facts.items()]


def _decision_rows(run: RunRecords) -> list[list[str]]:
    """Name, value and reason of each decision on record."""
    decisions = run.environment.get("decisions")
    return [
        [shown(decision.get(key, "")) for key in ("name", "value", "reason")]
        for decision in (decisions if isinstance(decisions, list) else [])
        if isinstance(decision, dict)
    ]


def _gemm_peak(run: RunRecords) -> str:
    return next((value for name, value, _ in _decision_rows(run) if name.startswith("MFU")), "-")


def _differences(runs: list[RunRecords]) -> list[list[str]]:
    """The config values in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [run.config.get(key, "") for run in runs] for key in keys}
    return [[key, *cells] for key, cells in values.items() if len(set(cells)) > 1]
