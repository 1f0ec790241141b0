"""Write the compressed base of `model.base_dtype: int4`: the IR that `export --adapter` ships.

Training starts this in a separate process: `python -m intel_ft.export.base CONFIG FOLDER`.
"""

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from intel_ft.artifacts.int4_base import RECORD
from intel_ft.artifacts.ir_weights import digest_of, read_compressed
from intel_ft.artifacts.resolve import Artifact
from intel_ft.config import Config, load
from intel_ft.errors import UserError
from intel_ft.export.convert import convert, safe_folder
from intel_ft.export.export import require_packages
from intel_ft.export.output import quiet
from intel_ft.export.quantize import Calibration, quantize
from intel_ft.export.recipe import (
    QuantizationRecipe,
    find_recipe,
    options_for,
    public_id,
    uses_data,
)
from intel_ft.export.run_data import run_calibration
from intel_ft.files import whole_folder, write_json
from intel_ft.quantization import Format, Settings, base_format, base_settings
from intel_ft.subprocess_json import result_stream

logger = logging.getLogger(__name__)


def make_base(config: Config, output: Path) -> str:
    """Compress the base that `config` trains on and write its IR folder to `output`.

    With the base's recipe or the defaults, except AWQ, and `model.quantization`; calibrated on the
    run's training examples. Returns the digest of the weights. Raises UserError for a base or
    settings that cannot be used.
    """
    from intel_ft.models.load import load_tokenizer

    model = config.model
    settings, weight_format = base_settings(model.quantization), base_format(model.quantization)
    artifact = Artifact("base", model.name_or_path, model.name_or_path, model.revision)
    with quiet(), whole_folder(output) as partial:
        require_packages()
        folder = safe_folder(artifact, model.trust_remote_code, model.allow_pickle)
        ids = [public_id(model.name_or_path), _id_in(folder)]
        recipe = find_recipe(ids, weight_format, settings)
        calibration = run_calibration(config, load_tokenizer(model), settings)
        options, used = base_options(recipe, weight_format, settings, calibration)
        base_id = public_id(model.name_or_path)
        with tempfile.TemporaryDirectory(dir=partial) as aside:
            fp16 = Path(aside) / "fp16"
            convert(folder, fp16, base_id, model.trust_remote_code)
            quantize(
                fp16, partial, options, settings, used, trust_remote_code=model.trust_remote_code
            )
            for path in sorted(fp16.iterdir()):
                if not (partial / path.name).exists():
                    shutil.copyfile(path, partial / path.name)
        digest = digest_of(read_compressed(partial))
        record = {
            "sha256": digest,
            "format": weight_format,
            "base_model": base_id,
            "settings": options,
            "recipe": {"id": recipe.id, "used": recipe.used, "why": recipe.why},
            "calibration": used
            and {"source": used.source, "samples": len(used.rows), "tokens": used.tokens},
        }
        write_json(partial / RECORD, record)
    return digest


def base_options(
    recipe: QuantizationRecipe,
    weight_format: Format,
    settings: Settings,
    calibration: Calibration | None,
) -> tuple[dict[str, Any], Calibration | None]:
    """NNCF's options for a base that adapters are applied to, and the data that they use.

    AWQ is off, also where the recipe has it: it divides a layer's output by scales that it
    multiplies into the next layer's weights, so that an adapter on either would be wrong.
    """
    if recipe.used and "bits" not in recipe.options:
        raise UserError(
            f"the recipe for {recipe.id} has several stages, but a base for adapters is compressed"
            " in one: set recipe=none (in model.quantization or with --set)"
        )
    options = options_for(weight_format, settings, recipe, calibration is not None)
    return options, calibration if uses_data(options, settings) else None


def _id_in(folder: Path) -> str:
    from intel_ft.artifacts.model_folder import BASE_KEY
    from intel_ft.artifacts.resolve import read_json

    return str(read_json(folder / "config.json").get(BASE_KEY) or "")


def main() -> None:
    """Make the base of the config file and folder on the command line; print its digest as JSON."""
    file, output = map(Path, sys.argv[1:])
    with result_stream() as stream:
        json.dump({"sha256": make_base(load(file), output)}, stream)


if __name__ == "__main__":
    main()
