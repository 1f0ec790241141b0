"""The gate's limits, its table and what it says; called from export.openvino and cli.export."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from intel_ft.errors import UserError
from intel_ft.export.measure import Quality
from intel_ft.export.settings import Format
from intel_ft.plot import scatter_plot

PLOT = "export.svg"
CONFIDENCE = 1.645  # standard errors: 95 % of a normal distribution lie below


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to, as shares (0.01 is 1 %); None is no limit."""

    max_ppl_increase: float | None = None
    min_agreement: float | None = None

    @property
    def set(self) -> bool:
        """Whether there is any."""
        return self.max_ppl_increase is not None or self.min_agreement is not None

    def refusal(self, quality: Quality) -> str | None:
        """Which limit `quality` misses, None where it keeps to both; a NaN misses them.

        Perplexity must keep to its limit with 95 % confidence (one-sided, the paired differences of
        the tokens' losses taken as independent): a candidate is not kept for its luck.
        """
        most, least = self.max_ppl_increase, self.min_agreement
        increase, error = quality.ppl_increase, quality.ppl_increase_error
        if most is not None and not increase + CONFIDENCE * error <= most:
            known = increase > most or error == 0
            more = "" if known else ", which more held-out data might prove to be kept"
            return f"perplexity {increase:+.2%} ± {error:.2%} (limit {most:+.2%}{more})"
        if least is not None and not quality.agreement >= least:
            return f"top-1 agreement {quality.agreement:.4f} (limit {least:g})"
        return None


@dataclass(frozen=True)
class Gate:
    """What is measured, and what it must keep to. `data`: held-out examples, the run's own where
    None; `generate`: answers that are checked, too; `measure` False measures nothing.
    """

    limits: Limits = field(default_factory=Limits)
    data: str | None = None
    split: str | None = None
    generate: int = 0
    max_new_tokens: int = 256
    measure: bool = True


@dataclass(frozen=True)
class Row:
    """A candidate as measured. `settings`: what it was quantized with."""

    name: str
    format: Format
    settings: dict[str, Any]
    megabytes: float
    quality: Quality | None

    def record(self, limits: Limits) -> dict[str, Any]:
        """Its line in export.json (docs/export.md)."""
        values = {key: value for key, value in asdict(self).items() if key != "quality"}
        why = limits.refusal(self.quality) if self.quality else None
        measured = asdict(self.quality) if self.quality else {}
        return values | measured | {"passed": why is None, "why": why}


def share(text: str, option: str) -> float:
    """`1%`, `0.3 %` or `0.01` as a share.

    Raises UserError naming `option` for anything else, and for negative values.
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not (0 <= value < math.inf):
        raise UserError(f"{option} {text}: write a share such as 1% or 0.01")
    return value


COLUMNS = ("", "MB", "perplexity", "increase", "KL", "top-1", "exact", "parses", "1st ms", "tok/s")


def cells(row: dict[str, Any]) -> list[str]:
    """A record's cells under COLUMNS."""
    increase, error = row.get("ppl_increase"), row.get("ppl_increase_error")
    shown = "" if increase is None else f"{increase:+.2%}" + (f" ± {error:.2%}" if error else "")
    return [
        row["name"],
        f"{row['megabytes']:,.1f}",
        _number(row.get("perplexity"), ".4f"),
        shown,
        _number(row.get("kl"), ".5f"),
        _number(row.get("agreement"), ".4f"),
        _number(row.get("exact_match"), ".1%"),
        _number(row.get("parses"), ".1%"),
        _number(row.get("first_token_ms"), ",.0f"),
        _number(row.get("tokens_per_s"), ",.1f"),
    ]


def line(row: Row, why: str | None) -> str:
    """A row for the log, as soon as it is measured."""
    if row.quality is None:
        return f"{row.name}: {row.megabytes:,.1f} MB"
    quality = row.quality
    return (
        f"{row.name}: {row.megabytes:,.1f} MB, perplexity {quality.perplexity:.4f} "
        f"({quality.ppl_increase:+.2%} ± {quality.ppl_increase_error:.2%}), KL {quality.kl:.5f}, "
        f"top-1 agreement {quality.agreement:.4f}: {f'refused, {why}' if why else 'kept'}"
    )


def plot(table: list[dict[str, Any]], limits: Limits) -> str:
    """SVG: size in MB against the increase of perplexity in percent, a point a candidate."""
    points = [(row["megabytes"], 100 * row["ppl_increase"], row["name"]) for row in table]
    most = limits.max_ppl_increase
    return scatter_plot(
        "Size and quality", "MB", "increase of perplexity, %", points, most and 100 * most
    )


def _number(value: float | None, format: str) -> str:
    return "" if value is None else f"{value:{format}}"
