"""What is tried, and in which order: one candidate, or the ladder of `--format auto`; called from
export.openvino.
"""

from dataclasses import dataclass
from typing import Any, Literal

from intel_ft.export.settings import Format, Settings

_LADDER: tuple[tuple[str, Format, dict[str, float]], ...] = (
    ("int4", "int4", {}),
    ("int4-g64", "int4", {"group_size": 64}),
    ("int4-g32", "int4", {"group_size": 32}),
    ("int4-r80", "int4", {"group_size": 64, "ratio": 0.8}),
    ("int4-r60", "int4", {"group_size": 64, "ratio": 0.6}),
    ("int4-r40", "int4", {"group_size": 64, "ratio": 0.4}),
    ("int8", "int8", {}),
    ("fp16", "fp16", {}),
)
"""From small to large: finer groups first (a sixteenth of a byte more a weight), then ever more
layers, the most sensitive first, in 8 bits. The first is the base's own recipe where there is one.
nf4 and mxfp4 are as large as int4-g64 and no better (docs/export.md), so they are for who asks.
"""


@dataclass(frozen=True)
class Candidate:
    """One way to store the weights."""

    name: str
    format: Format
    settings: Settings


def candidates(format: Format | Literal["auto"], settings: Settings) -> list[Candidate]:
    """The ladder for "auto", else the one that was asked for. What the user sets holds on every
    rung that knows it; rungs that would then be the same are tried once.
    """
    if format != "auto":
        return [Candidate(format, format, settings)]
    own = settings.model_dump(exclude_unset=True)
    rungs: list[Candidate] = []
    seen: list[tuple[Format, dict[str, Any]]] = []
    for name, kind, rung in _LADDER:
        kept = own if kind == "int4" else {k: v for k, v in own.items() if k in _EVERYWHERE[kind]}
        # The rungs above the first are its variations, not the recipe's.
        recipe = {"recipe": "none"} if rung else {}
        settings = Settings(**({**recipe, **rung} | kept))
        what = (kind, settings.model_dump(exclude={"recipe"}))
        if what not in seen:
            seen.append(what)
            rungs.append(Candidate(name, kind, settings))
    return rungs


_RUNTIME = {"kv_cache", "samples", "sample_tokens"}
_EVERYWHERE = {
    "int8": _RUNTIME | {"recipe", "sym", "activations", "smooth_quant_alpha", "ignored_layers"},
    "fp16": _RUNTIME,
}
