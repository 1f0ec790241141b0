"""The candidates of an export, from small to large: one, or the ladder of `--format auto`."""

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
"""From small to large: smaller groups first (1/16 byte more per weight), then more and more
layers in 8 bits, the most sensitive first. The first rung uses the base's tuned recipe, if any.
nf4 and mxfp4 are as large as int4-g64 and no better (docs/export.md), so auto does not try them.
"""


@dataclass(frozen=True)
class Candidate:
    """One way to store the weights."""

    name: str
    format: Format
    settings: Settings


def candidates(weight_format: Format | Literal["auto"], settings: Settings) -> list[Candidate]:
    """The ladder for "auto", otherwise one candidate.

    The user's settings apply to every rung whose format has them; rungs that become equal are
    tried once.
    """
    if weight_format != "auto":
        return [Candidate(weight_format, weight_format, settings)]
    user_set = settings.model_dump(exclude_unset=True)
    rungs: list[Candidate] = []
    seen: list[tuple[Format, dict[str, Any]]] = []
    for name, rung_format, rung in _LADDER:
        allowed = _ALLOWED.get(rung_format, user_set)
        # The tuned recipe is for the first rung alone: the others set its values themselves.
        recipe: dict[str, Any] = {"recipe": "none"} if rung else {}
        user_values = {key: value for key, value in user_set.items() if key in allowed}
        rung_settings = Settings(**(recipe | rung | user_values))
        effective = (rung_format, rung_settings.model_dump(exclude={"recipe"}))
        if effective not in seen:
            seen.append(effective)
            rungs.append(Candidate(name, rung_format, rung_settings))
    return rungs


_RUNTIME = {"kv_cache", "samples", "sample_tokens"}
_ALLOWED = {
    "int8": _RUNTIME | {"recipe", "sym", "activations", "smooth_quant_alpha", "ignored_layers"},
    "fp16": _RUNTIME,
}
"""Settings that apply to a rung of this format; to int4 all of them do."""
