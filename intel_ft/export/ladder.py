"""The candidates of an export, from small to large: one, or the ladder of `--format auto`."""

from dataclasses import dataclass
from typing import Any, Literal

from intel_ft.quantization import Format, Settings

RECOVERED = "-recovered"

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
    """One way to store the weights; `recover`: tuned after compression (export.recover)."""

    name: str
    format: Format
    settings: Settings
    recover: bool = False


def candidates(
    weight_format: Format | Literal["auto"], settings: Settings, *, recover: bool = False
) -> list[Candidate]:
    """The ladder for "auto", otherwise one candidate.

    recover: tune int4 after compression. auto tries it with all layers in 4 bits, its smallest
    candidate, and after a plain int4 that did not pass.

    The user's settings apply to every rung whose format has them; rungs that become equal are tried
    once.
    """
    if weight_format != "auto":
        if recover:
            return [_recovered(weight_format, settings)]
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
    if recover:
        whole = Settings(**(user_set | {"recipe": "none", "all_layers": True}))
        rungs.insert(1, _recovered("int4", settings))
        rungs.insert(0, _recovered("int4-all", whole))
    return rungs


def _recovered(name: str, settings: Settings) -> Candidate:
    """int4 without AWQ, whose scales have no place in the model in torch that it is tuned with."""
    tuned = Settings(**(settings.model_dump(exclude_unset=True) | {"awq": False}))
    return Candidate(f"{name}{RECOVERED}", "int4", tuned, recover=True)


_RUNTIME = {"kv_cache", "samples", "sample_tokens"}
_ALLOWED = {
    "int8": _RUNTIME | {"recipe", "sym", "activations", "smooth_quant_alpha", "ignored_layers"},
    "fp16": _RUNTIME,
}
"""Settings that apply to a rung of this format; to int4 all of them do."""
