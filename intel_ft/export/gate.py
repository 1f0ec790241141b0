"""The quality gate of an export: its limits, its table and its plot."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from intel_ft.errors import UserError
from intel_ft.export.harness import PREFIX
from intel_ft.export.measure import Quality
from intel_ft.export.measure_pairs import PairQuality
from intel_ft.plot import scatter_plot
from intel_ft.plurals import count_of
from intel_ft.quantization import Format
from intel_ft.tables import Table

PLOT = "export.svg"
TASK_ANSWERS = 50
CONFIDENCE = 1.645  # standard errors: 95 % of a normal distribution lie below


@dataclass(frozen=True)
class Limits:
    """What a candidate must satisfy, as shares (0.01 is 1 %); None is no limit."""

    max_ppl_increase: float | None = None
    min_agreement: float | None = None
    max_task_drop: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return any(
            limit is not None
            for limit in (self.max_ppl_increase, self.min_agreement, self.max_task_drop)
        )

    def why_rejected(self, quality: Quality | PairQuality) -> str | None:
        """The limit that `quality` misses, None where it satisfies all; a NaN misses them.

        Perplexity and task must satisfy theirs with 95 % confidence (one-sided; the paired
        differences of the token losses are taken as independent), so that no candidate passes by
        chance.
        """
        if isinstance(quality, Quality) and self.max_ppl_increase is not None:
            limit = self.max_ppl_increase
            increase, error = quality.ppl_increase, quality.ppl_increase_error
            if not increase + CONFIDENCE * error <= limit:
                certain = increase > limit or error == 0
                hint = "" if certain else "; a larger validation set might show that it is met"
                return f"perplexity {increase:+.2%} ± {error:.2%} (limit {limit:+.2%}{hint})"
        minimum = self.min_agreement
        if minimum is not None and not quality.agreement >= minimum:
            return f"{quality.AGREEMENT} {quality.agreement:.4f} (limit {minimum:g})"
        drop, task = self.max_task_drop, quality.task
        if drop is not None and task is not None and not task.worst >= -drop:
            certain = task.difference < -drop
            hint = "" if certain else f"; {quality.MORE} might show that it is met"
            return (
                f"{quality.TASK} {task.score:.1%} where the reference has {task.reference:.1%}, "
                f"with 95 % confidence a change above {task.worst:+.1%} (limit {-drop:+.1%}{hint})"
            )
        return None

    def verdict(self, quality: Quality | PairQuality) -> str:
        """For the log: `passed` with the limits that apply to `quality`, or why it is rejected."""
        if (why := self.why_rejected(quality)) is not None:
            return f"rejected: {why}"
        applied = []
        if isinstance(quality, Quality) and self.max_ppl_increase is not None:
            applied.append(f"perplexity {self.max_ppl_increase:+.2%}")
        if self.min_agreement is not None:
            applied.append(f"{quality.AGREEMENT} {self.min_agreement:.2%}")
        if self.max_task_drop is not None and quality.task is not None:
            applied.append(f"{quality.TASK} {-self.max_task_drop:+.1%}")
        return f"passed (limit {', '.join(applied)})" if applied else "measured, no limit"


@dataclass(frozen=True)
class Gate:
    """What is measured, and the limits.

    `data`: the validation set, None for the run's; `generate`: number of answers that are checked,
    too, and of documents of a task that has its own; `measure`: False skips all measurements;
    `reference`: another model to compare with, such as a run that was trained on bf16 weights, None
    for the model that is exported; `task`: what `--task` names (export.tasks), None for no task.
    """

    limits: Limits = field(default_factory=Limits)
    data: str | None = None
    split: str | None = None
    generate: int = 0
    max_new_tokens: int = 256
    measure: bool = True
    reference: str | None = None
    task: str | None = None

    @property
    def answers(self) -> int:
        """Number of answers: `generate`, or enough for a task that scores them."""
        scored = self.task is not None and not self.task.startswith(PREFIX)
        return self.generate or (TASK_ANSWERS if scored else 0)


@dataclass(frozen=True)
class GateRow:
    """A measured candidate; `settings` are those it was quantized with."""

    name: str
    format: Format
    settings: dict[str, Any]
    megabytes: float
    quality: Quality | PairQuality | None

    def record(self, limits: Limits) -> dict[str, Any]:
        """Its entry in export.json (docs/export-json.md)."""
        values = {key: value for key, value in asdict(self).items() if key != "quality"}
        why = limits.why_rejected(self.quality) if self.quality else None
        measured = asdict(self.quality) if self.quality else {}
        return values | measured | {"passed": why is None, "why": why}


def parse_share(text: str, option: str) -> float:
    """`1%`, `0.3 %` or `0.01` as a share.

    Raises UserError naming `option` for anything else, for negative values, and for a number of 1
    or more without a percent sign, which could be meant either way.
    """
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not (0 <= value < math.inf):
        raise UserError(f"{option} {text}: write a share such as 1% or 0.01")
    if value >= 1 and not text.strip().endswith("%"):
        whole = f" or {100 * value:g}%" if value == 1 else ""  # 1 may stand for all
        raise UserError(
            f"{option} {text}: a number without % is a share, so this would be {100 * value:g} %: "
            f"write {number}%{whole}"
        )
    return value


COLUMNS = (
    "candidate",
    "MB",
    "perplexity",
    "increase",
    "KL",
    "agreement",
    "pair accuracy",
    "correlation",
    "largest difference",
    "exact match",
    "valid Python",
    "similar",
    "task",
    "first token, ms",
    "token/s",
)


def table_cells(record: dict[str, Any]) -> list[str]:
    """The cells of one candidate's record in export.json, under COLUMNS."""
    increase, error = record.get("ppl_increase"), record.get("ppl_increase_error")
    interval = "" if increase is None else f"{increase:+.2%}" + (f" ± {error:.2%}" if error else "")
    return [
        record["name"],
        f"{record['megabytes']:,.1f}",
        _number(record.get("perplexity"), ".4f"),
        interval,
        _number(record.get("kl"), ".5f"),
        _number(record.get("agreement"), ".4f"),
        _task(record.get("pair_accuracy")),
        _number(record.get("correlation"), ".5f"),
        _number(record.get("max_difference"), ".4f"),
        _number(record.get("exact_match"), ".1%"),
        _number(record.get("parses"), ".1%"),
        _number(record.get("similarity"), ".3f"),
        _task(record.get("task")),
        _number(record.get("first_token_ms"), ",.0f"),
        _number(record.get("tokens_per_s"), ",.1f"),
    ]


def gate_table(gate: dict[str, Any]) -> Table:
    """The `gate` value of export.json as a table, the reference first, without empty columns."""
    rows = [table_cells(reference_record(gate)), *map(table_cells, gate["table"])]
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    data = gate["data"]
    if "pairs" in data:
        measured = f"{data['pairs']:,} pairs. Agreement (the share of pairs in the same order), "
        compared = "correlation and difference of the scores"
    else:
        measured = f"{count_of(data['examples'], 'example')}, {data['positions']:,} tokens. "
        compared = "KL and top-1 agreement"
    return Table(
        tuple(COLUMNS[i] for i in used),
        [tuple(row[i] for i in used) for row in rows],
        (
            f"Validation set: {data['source']}, {measured}{compared} are against the reference, "
            "the first row.",
        ),
    )


def reference_record(gate: dict[str, Any]) -> dict[str, Any]:
    """The reference in the `gate` value of export.json, named as a row of the table."""
    return {"name": f"torch, {gate['reference']['dtype']}", **gate["reference"]}


def log_line(row: GateRow, limits: Limits) -> str:
    """A candidate's result for the log."""
    if row.quality is None:
        return f"{row.name}: {row.megabytes:,.1f} MB"
    verdict = limits.verdict(row.quality)
    return f"{row.name}: {row.megabytes:,.1f} MB, {row.quality.summary()}: {verdict}"


def size_quality_plot(table: list[dict[str, Any]], limits: Limits) -> str:
    """SVG: size in MB against the loss of quality in percent, one point per candidate.

    The loss is the increase of perplexity, or for a reward model the share of pairs in another
    order.
    """
    if "ppl_increase" in table[0]:
        what, limit = "increase of perplexity, %", limits.max_ppl_increase
        lost = [row["ppl_increase"] for row in table]
    else:
        what, minimum = "pairs in another order, %", limits.min_agreement
        limit = None if minimum is None else 1 - minimum
        lost = [1 - row["agreement"] for row in table]
    points = [
        (row["megabytes"], 100 * value, row["name"]) for row, value in zip(table, lost, strict=True)
    ]
    return scatter_plot("Size and quality", "MB", what, points, limit and 100 * limit)


def _task(value: dict[str, Any] | float | None) -> str:
    """The reference's mean score, or a candidate's with its change and what that is above."""
    if not isinstance(value, dict):
        return _number(value, ".1%")
    return f"{value['score']:.1%} ({value['difference']:+.1%}, above {value['worst']:+.1%})"


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else f"{value:{spec}}"
