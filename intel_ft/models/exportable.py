"""Which model types Optimum-Intel exports, known without importing it.

The table in assets/optimum_exports.json holds the version limits that the locked Optimum-Intel
states itself; `python tools/architectures.py --limits` writes it.
"""

import json
import re
from functools import cache
from pathlib import Path

from intel_ft import assets
from intel_ft.decisions import Decision
from intel_ft.files import user_cache
from intel_ft.versions import installed

LIFTED = ("exaone4", "gemma", "gemma2", "gemma3_text", "glm", "llama4_text")
"""Types whose stated limit `export` lifts, and then checks the IR's logits against torch's."""

OLDER = {
    "lfm2": ("transformers==5.4.0",),
    "lfm2_moe": ("transformers==5.4.0",),
    "qwen3_5_text": ("transformers==5.2.0",),
    "qwen3_next": ("transformers==4.57.6", "huggingface-hub==0.36.2"),
}
"""Types that `export` converts with this older Transformers, in a process of its own.

Only the conversion needs it. The IR's logits are then compared with those of the installed version.
"""

_WRONG_SCORES = ("gemma", "gemma2", "gemma3_text")
"""Types whose exported classifiers do not give torch's scores (Optimum-Intel 2.2)."""

TABLE = Path(assets.__file__).parent / "optimum_exports.json"


@cache
def limits() -> dict[str, tuple[str | None, str | None]]:
    """By model_type: the lowest and the highest version of Transformers that can export it."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["transformers"]
    return {model_type: (low, high) for model_type, (low, high) in rows.items()}


@cache
def table_version() -> str:
    """The version of Optimum-Intel that the table is of."""
    return str(json.loads(TABLE.read_text(encoding="utf-8"))["optimum-intel"])


@cache
def classifiers() -> frozenset[str]:
    """Types that Optimum-Intel exports as sequence classifiers whose scores are those of torch."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))["text-classification"]
    return frozenset(table).difference(_WRONG_SCORES)


def why_not_exportable(model_type: str, *, scores: bool = False) -> str | None:
    """Why a model of this type cannot be exported with the installed Transformers, or None.

    scores: it is a reward model.
    """
    exporter = f"Optimum-Intel {table_version()}"
    if model_type not in (classifiers() if scores else limits()):
        what = "a sequence classifier of model_type" if scores else "model_type"
        return f"{exporter} has no export of {what} {model_type}"
    low, high = limits()[model_type]
    if is_lifted(model_type):
        return None
    version = installed("transformers") or "0"
    if high and _numbers(version) > _numbers(high):
        if older_packages(model_type):
            return None
        reason = (
            f"{exporter} exports {model_type} with Transformers up to {high}, here is {version}"
        )
        return f"{reason}{_how_to_get(model_type)}"
    if low and _numbers(version) < _numbers(low):
        return f"{exporter} exports {model_type} with Transformers from {low}, here is {version}"
    return None


def is_lifted(model_type: str) -> bool:
    """Whether `export` lifts the limit that Optimum-Intel states for this type."""
    return model_type in LIFTED and installed("optimum-intel") == table_version()


def older_packages(model_type: str) -> Path | None:
    """The folder with the Transformers that `export` needs for this type, if it is there.

    None, too, for types that need no other version.
    """
    if model_type not in OLDER:
        return None
    folder = _packages(model_type)
    return folder if (folder / f"{folder.name}.dist-info").is_dir() else None


def is_compared(model_type: str) -> bool:
    """Whether `export` has to prove the IR: it goes beyond what Optimum-Intel states."""
    return is_lifted(model_type) or older_packages(model_type) is not None


def _packages(model_type: str) -> Path:
    return user_cache("export") / OLDER[model_type][0].replace("==", "-")


def _how_to_get(model_type: str) -> str:
    if model_type not in OLDER:
        return ""
    packages = " ".join(OLDER[model_type])
    return (
        f"; export converts it with {OLDER[model_type][0]} once `pip install --no-deps --target "
        f"{_packages(model_type)} {packages}` has run"
    )


def export_decision(model_type: str, *, scores: bool = False) -> Decision:
    """Whether `intel-ft export` will accept the trained model; scores: it is a reward model."""
    reason = why_not_exportable(model_type, scores=scores)
    if reason is not None:
        others = "merge and eval" if scores else "merge, eval and generate"
        return Decision("export to OpenVINO", "no", f"{reason}; {others} work")
    if scores:
        reason = f"Optimum-Intel exports {model_type} as a sequence classifier"
        return Decision("export to OpenVINO", "yes", reason)
    by = f" with the Transformers in {older}" if (older := older_packages(model_type)) else ""
    checked = ", which checks its logits against torch's" if is_compared(model_type) else ""
    reason = f"Optimum-Intel exports {model_type}{by}{checked}"
    return Decision("export to OpenVINO", "yes", reason)


def _numbers(version: str) -> tuple[int, ...]:
    """(5, 0, 0) for "5.0"."""
    found = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return (*found, *[0] * (3 - len(found)))
