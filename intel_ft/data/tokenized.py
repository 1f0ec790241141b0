"""The examples that a run trains or evaluates on, from one source or several, and their reports."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.data.mixture import Part, parts_of
from intel_ft.data.prepare import DataReport, Prepared
from intel_ft.data.selection import Selection
from intel_ft.templates.examples import ExampleSet
from intel_ft.templates.formats import READY_MADE
from intel_ft.templates.template import Template


@dataclass(frozen=True, eq=False)
class Tokenized:
    """Tokenized examples, which may lie on disk, in the order of the sources.

    template: the one that prompts get when the trained model is used; reports: one of each source;
    parts: what an epoch takes from each source, empty where sources have no weights.
    """

    examples: ExampleSet
    template: Template
    reports: tuple[DataReport, ...]
    parts: tuple[Part, ...] = ()

    @property
    def report(self) -> DataReport:
        """The reports as one."""
        return merge_reports(self.reports)

    def lines(self) -> list[str]:
        """The reports as text, one line per fact, and how the sources are mixed."""
        lines = [line for report in self.reports for line in report.lines()]
        lines += [
            f"an epoch takes {one['per_epoch']:,} of its {len(self.examples):,} examples"
            f" ({100 * one['share']:.1f} %) from {one['source']}, which has {one['examples']:,}:"
            f" {one['per_epoch'] / one['examples']:.2f} passes"
            for one in (self.shares() if self.parts else [])
        ]
        templates = {report.template for report in self.reports if report.format not in READY_MADE}
        if len(templates) > 1:
            lines.append(f"prompts to the trained model get the template {self.template}")
        return lines

    def shares(self) -> list[dict[str, Any]]:
        """Of each source its examples, how many an epoch takes, and their share of the epoch."""
        taken = [part.per_epoch for part in self.parts] or [one.examples for one in self.reports]
        return [
            {
                "source": report.source,
                "examples": report.examples,
                "per_epoch": per_epoch,
                "share": per_epoch / len(self.examples),
            }
            for report, per_epoch in zip(self.reports, taken, strict=True)
        ]

    def statistics(self) -> dict[str, Any]:
        """The facts of the reports and a histogram of example lengths.

        `lengths["counts"][i]` examples have from `edges[i]` to `edges[i + 1]` tokens. `sources` has
        each report of several, with what an epoch takes from it.
        """
        counts, edges = np.histogram(self.examples.lengths, bins=24)
        facts = asdict(self.report)
        facts["lengths"] = {"edges": edges.tolist(), "counts": counts.tolist()}
        if len(self.reports) > 1:
            facts["sources"] = [
                {**asdict(report), **share}
                for report, share in zip(self.reports, self.shares(), strict=True)
            ]
        return facts

    def select(self, places: npt.NDArray[np.int64]) -> "Tokenized":
        """The examples at `places` of one source, with a report that counts them."""
        (report,) = self.reports
        chosen = Selection((self.examples,), places)
        return Tokenized(chosen, self.template, (counted(report, chosen),))


def of_prepared(prepared: Prepared) -> Tokenized:
    """The examples of one source that lie in memory."""
    return Tokenized(prepared.examples, prepared.template, (prepared.report,))


def join(sources: Sequence[Tokenized], weights: Sequence[float] = ()) -> Tokenized:
    """The examples of all `sources`, mixed by their weights if there are some.

    Raises UserError for a weight that is too low.
    """
    if len(sources) == 1:
        return sources[0]
    sets = tuple(source.examples for source in sources)
    counts = [len(examples) for examples in sets]
    reports = tuple(report for source in sources for report in source.reports)
    parts = parts_of([r.source for r in reports], counts, weights) if weights else []
    chats = [source.template for source in sources if source.reports[0].format not in READY_MADE]
    template = chats[0] if chats else sources[0].template
    everything = Selection(sets, np.arange(sum(counts), dtype=np.int64))
    return Tokenized(everything, template, reports, tuple(parts))


def counted(report: DataReport, examples: ExampleSet) -> DataReport:
    """The report with the counts of `examples`, a part of those that it is about.

    Its `rows`, `truncated`, `dropped` and `bad` remain those of the whole source.
    """
    lengths = examples.lengths
    return replace(
        report,
        examples=len(examples),
        tokens=int(lengths.sum()),
        supervised_tokens=int(examples.supervised_counts.sum()),
        longest=int(lengths.max()),
    )


def merge_reports(reports: Sequence[DataReport]) -> DataReport:
    """One report of several sources, or of several parts of one."""
    if len(reports) == 1:
        return reports[0]
    merged: dict[str, Any] = {}
    for field in fields(DataReport):
        values = [getattr(report, field.name) for report in reports]
        if isinstance(values[0], int):
            merged[field.name] = max(values) if field.name == "longest" else sum(values)
        elif isinstance(values[0], tuple):
            merged[field.name] = _distinct(one for value in values for one in value)
        elif field.name == "bad_examples":
            merged[field.name] = first_bad_examples(values)
        else:
            merged[field.name] = ", ".join(_distinct(values))
    return DataReport(**merged)


def first_bad_examples(parts: Sequence[str]) -> str:
    """The first `bad_examples` of several reports, with `...` if others have some, too."""
    first, *others = filter(None, parts) if any(parts) else ("",)
    return f"{first}; ..." if others and not first.endswith("...") else first


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
