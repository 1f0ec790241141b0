"""The base of `model.base_dtype: int4`: made once as an IR, found again in the user's cache.

`export.base` makes it in a separate process, so that training neither imports NNCF nor keeps its
memory. Everything that decides the weights names the folder: another base, setting, calibration set
or version gets its own.
"""

import fcntl
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from intel_ft.artifacts.fingerprints import config_fingerprint, hash_of, weights_fingerprint
from intel_ft.artifacts.int4_base import RECORD, Int4Base, cache_folder, open_int4_base
from intel_ft.config import Config
from intel_ft.files import explain_full_disk
from intel_ft.models.weight_files import weight_files
from intel_ft.subprocess_json import run_module
from intel_ft.templates.examples import ExampleSet
from intel_ft.versions import installed

logger = logging.getLogger(__name__)

_MODULE = "intel_ft.export.base"
_PACKAGES = ("nncf", "openvino", "optimum-intel")


def prepare_int4_base(config: Config, folder: Path, examples: ExampleSet) -> Int4Base:
    """The compressed base of the model in `folder`, made now unless it is in the cache.

    examples: the run's training examples, on which compression is calibrated. Raises UserError for
    settings that NNCF rejects, IntelFTError where the cached weights are damaged or the disk is
    full.
    """
    target = int4_folder(config, folder, examples)
    with explain_full_disk(target, "run the command again"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it
            if not (target / RECORD).is_file():
                logger.info("compressing the base to int4, once: it is kept in %s", target)
                _make(config, target)
    return open_int4_base(target)


def int4_folder(config: Config, folder: Path, examples: ExampleSet) -> Path:
    """Where the compressed base for these training examples is kept."""
    values = {
        "weights": weights_fingerprint(weight_files(folder) or sorted(folder.glob("*.bin"))),
        "config": config_fingerprint(folder),
        "settings": config.model.quantization,
        "versions": {name: installed(name) for name in _PACKAGES},
    }
    data = np.ascontiguousarray(examples.hashes).tobytes()
    return cache_folder() / hash_of(json.dumps(values, sort_keys=True).encode(), data)


def _make(config: Config, target: Path) -> None:
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "config.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        run_module("model.base_dtype=int4", _MODULE, [str(file), str(target)], dict(os.environ))
