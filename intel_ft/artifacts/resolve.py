"""Recognize what a path or id is: run, adapter, merged model, IR or base model."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intel_ft.artifacts.model_folder import BASE_KEY
from intel_ft.artifacts.provenance import Provenance, StartAdapter
from intel_ft.errors import UserError

IR_FILE = "openvino_model.xml"
ADAPTER_CONFIG = "adapter_config.json"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

Kind = Literal["base", "adapter", "merged", "openvino"]


@dataclass(frozen=True)
class Artifact:
    """A model in one of its forms, and how its data was read when it was trained.

    `location` is a local folder, or for a base model possibly a Hub id. `base_model` is the model
    that training started from; a base model is its own. `template` and `loss_on` are those of
    training, None where the folder does not name them (a base model, or one without intel_ft.json).
    `start_adapter`: what the run started from, besides the base.
    """

    kind: Kind
    location: str
    base_model: str
    base_revision: str | None = None
    template: str | None = None
    system_prompt: str | None = None
    loss_on: str | None = None
    start_adapter: StartAdapter | None = None

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores answers, and writes none."""
        return is_reward_model(self.folder)

    @property
    def folder(self) -> Path:
        """`location` as a path; for a Hub id it does not exist."""
        return Path(self.location)


def resolve(path_or_id: str) -> Artifact:
    """Recognize a run, adapter, merged, IR or model folder; a Hub id is a base model.

    Raises UserError, one line, where there is no such folder, where a folder contains no model, and
    where a run has not finished.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that contains the model")
    if not folder.is_dir():
        return _hub_model(path_or_id, folder)
    if (folder / IR_FILE).is_file():
        return _described(
            folder, "openvino", str(read_json(folder / "config.json").get(BASE_KEY, ""))
        )
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        return _described(folder, "adapter", str(base or ""))
    if (folder / "adapter" / ADAPTER_CONFIG).is_file():
        return resolve(str(folder / "adapter"))
    if (folder / "model" / "config.json").is_file():  # a run that trained all weights
        return resolve(str(folder / "model"))
    if (folder / "config.json").is_file():
        provenance = Provenance.load(folder)
        kind: Kind = "merged" if provenance and provenance.kind == "merged" else "base"
        return _described(folder, kind, str(folder))
    if (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: this run has not finished (it has no adapter or model folder): "
            f"continue it with `intel-ft train {folder}/config.yaml --resume`"
        )
    raise UserError(
        f"{folder}: no model here: expected a run with adapter/ or model/, an {ADAPTER_CONFIG}, "
        f"a config.json with weights, or an {IR_FILE}"
    )


def _described(folder: Path, kind: Kind, base_model: str) -> Artifact:
    """The artifact in `folder`; its intel_ft.json overrides `base_model`."""
    provenance = Provenance.load(folder)
    if provenance is None:
        if kind == "adapter" and not base_model:
            raise UserError(f"{folder / ADAPTER_CONFIG}: does not name its base model")
        return Artifact(kind, str(folder), base_model or str(folder))
    return Artifact(
        kind,
        str(folder),
        provenance.base_model,
        provenance.base_revision,
        provenance.template,
        provenance.system_prompt,
        provenance.loss_on,
        provenance.start_adapter,
    )


def _hub_model(text: str, folder: Path) -> Artifact:
    looks_local = text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(text)
    if looks_local or ("/" in text and folder.parent.is_dir()):
        raise UserError(f"{text}: no such folder")
    return Artifact("base", text, text)


def is_reward_model(folder: Path) -> bool:
    """Whether the adapter or model in `folder` is a sequence classifier, as reward models are."""
    if (folder / ADAPTER_CONFIG).is_file():
        return read_json(folder / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS"
    names = read_json(folder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def trained_token_ids(adapter: Path) -> set[int]:
    """The ids of the tokens whose embeddings the adapter in a folder trained, row by row."""
    rows = read_json(adapter / ADAPTER_CONFIG).get("trainable_token_indices") or []
    return {
        int(id_) for ids in (rows.values() if isinstance(rows, dict) else [rows]) for id_ in ids
    }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} if there is no such file.

    Raises UserError where the file contains something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object")
    return values
