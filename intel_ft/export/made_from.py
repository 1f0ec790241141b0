"""What an export is made from, so that an interrupted one resumes on the same alone."""

import json
from collections.abc import Iterable
from typing import Any

import intel_ft
from intel_ft import assets
from intel_ft.artifacts.fingerprints import hash_of, model_state
from intel_ft.artifacts.resolve import Artifact
from intel_ft.errors import UserError
from intel_ft.export.run_data import run_config
from intel_ft.sources.rows import local_files
from intel_ft.versions import installed

_PACKAGES = ("openvino", "openvino-tokenizers", "nncf", "optimum-intel", "transformers", "torch")


def made_from(
    artifact: Artifact, base: str | None, named: Iterable[tuple[str | None, str]]
) -> dict[str, Any]:
    """The state of the base, of the run's config and data, and of the packages.

    named: data named on the command line, with its split.
    """
    config = run_config(artifact)
    read = list(named)
    if config is not None:
        data = config.data
        read += [(source.path, source.split or data.split) for source in data.sources]
        read.append((data.eval, data.eval_split or data.split))
    return {
        "version": intel_ft.__version__,
        "packages": {name: installed(name) for name in _PACKAGES},
        "base": model_state(base or artifact.base_model),
        "run": None if config is None else config.model_dump_json(),
        "files": [_files_state(path, split) for path, split in read if path is not None],
    }


def _files_state(source: str, split: str) -> str:
    """What tells the local files of a source from what was in them before; otherwise its name."""
    try:
        found = local_files(assets.resolve(source), split)
    except UserError:  # said where it is read
        found = None
    if found is None:
        return source
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found.files]
    return hash_of(json.dumps(facts).encode())
