"""One candidate made, read back and measured, once; called from export.openvino."""

import gc
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.ir import IRWeights, ir_megabytes
from intel_ft.artifacts.model_folder import write_base_id
from intel_ft.artifacts.resolve import read_json
from intel_ft.export.gate import Row
from intel_ft.export.ladder import Candidate
from intel_ft.export.measure import Quality, Task, measure
from intel_ft.export.quantize import Calibration, quantize
from intel_ft.export.recipe import Recipe, find_recipe, options_for, uses_data
from intel_ft.export.verify import verify
from intel_ft.export.workspace import stage
from intel_ft.files import write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """What every candidate is made from and measured with. `base_ids`: where a recipe is looked
    for, the public one first; `fp16`: the IR; `reference`: see `measure.write_reference`.
    """

    work: Path
    base_ids: list[str]
    fp16: Path
    calibration: Calibration | None
    task: Task | None
    reference: Path
    trust_remote_code: bool

    def folder(self, name: str) -> Path:
        """Where the candidate `name` is."""
        return self.work / "candidates" / name


@dataclass(frozen=True)
class Attempt:
    """A candidate as it came out. `runtime`: as in export.json."""

    row: Row
    recipe: Recipe
    calibrated: bool
    weights: IRWeights
    tokenizer_agrees: bool
    runtime: dict[str, str]


def attempt(bench: Bench, candidate: Candidate) -> Attempt:
    """Make, verify and measure `candidate`; what an interrupted export measured is read again."""
    recipe, options, calibration = _plan(bench, candidate)
    if candidate.format in ("int4", "int8"):
        log.info("%s", recipe.why)
    stated = _stated(options, candidate)
    kept = bench.work / "candidates" / f"{candidate.name}.json"
    values = read_json(kept)
    if values.get("settings") != stated:
        values = {}
    if not values:
        values = _made_and_measured(bench, candidate, options, calibration) | {"settings": stated}
        write_json(kept, values)
    quality = Quality(**values["quality"]) if values["quality"] else None
    return Attempt(
        row=Row(candidate.name, candidate.format, stated, values["megabytes"], quality),
        recipe=recipe,
        calibrated=calibration is not None,
        weights=IRWeights(**values["weights"]),
        tokenizer_agrees=values["tokenizer_agrees"],
        runtime=values["runtime"],
    )


def ensure_made(bench: Bench, candidate: Candidate) -> None:
    """Make the candidate's folder again where an interruption lost it after it was measured."""
    _make(bench, candidate, *_plan(bench, candidate)[1:])


def _plan(bench: Bench, candidate: Candidate) -> tuple[Recipe, dict[str, Any], Calibration | None]:
    """The base's recipe, the options in force, and the calibration data if they use any."""
    settings = candidate.settings
    recipe = find_recipe(bench.base_ids, candidate.format, settings)
    options = options_for(candidate.format, settings, recipe, bench.calibration is not None)
    return recipe, options, bench.calibration if uses_data(options, settings) else None


def _stated(options: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """The options as export.json has them, with what goes another way than through them."""
    settings = candidate.settings
    stated = dict(options)
    if settings.activations != "none":
        stated |= {
            "activations": settings.activations,
            "smooth_quant_alpha": settings.smooth_quant_alpha,
        }
    if settings.kv_cache != "auto":
        stated["kv_cache"] = settings.kv_cache
    return stated


def _made_and_measured(
    bench: Bench, candidate: Candidate, options: dict[str, Any], calibration: Calibration | None
) -> dict[str, Any]:
    folder = _make(bench, candidate, options, calibration)
    gc.collect()
    weights, agrees, model = verify(folder, candidate.format)
    quality = measure(model, bench.task, bench.reference) if bench.task else None
    return {
        "megabytes": ir_megabytes(folder),
        "quality": asdict(quality) if quality else None,
        "weights": asdict(weights),
        "tokenizer_agrees": agrees,
        "runtime": model.precisions(),
    }


def _make(
    bench: Bench, candidate: Candidate, options: dict[str, Any], calibration: Calibration | None
) -> Path:
    def make(partial: Path) -> None:
        quantize(
            bench.fp16,
            partial,
            options,
            candidate.settings,
            calibration,
            trust_remote_code=bench.trust_remote_code,
        )
        for path in sorted(bench.fp16.iterdir()):
            if not (partial / path.name).exists():
                shutil.copyfile(path, partial / path.name)
        write_base_id(partial, bench.base_ids[0])

    return stage(bench.folder(candidate.name), make)
