"""The card's front matter, with what it inherits from the base model's card; called from hub.push.

The Hub's own words for the fields: https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intel_ft import assets
from intel_ft.artifacts.resolve import Artifact, read_json
from intel_ft.errors import UserError
from intel_ft.hub.contents import CARD
from intel_ft.hub.records import Records
from intel_ft.training.run_record import is_local

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelCardData

Relation = Literal["adapter", "finetune", "quantized", "merge"]
LIBRARIES = {"adapter": "peft", "merged": "transformers", "openvino": "openvino"}
TASK = "text-generation"
_DATASET = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:[\w.-]+)?")
_DATA_FILE = re.compile(r".*\.(jsonl?|csv|parquet|txt)")


@dataclass(frozen=True)
class Wishes:
    """What the user says about the model; None or empty where the records shall say it."""

    base_model: str | None = None
    relation: Relation | None = None
    license: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()


def name_of(repo: str) -> str:
    """The name in `org/name`."""
    return repo.rpartition("/")[2]


def base_id(artifact: Artifact, wishes: Wishes) -> str:
    """The base model's id on the Hub. Raises UserError where only a local folder is known."""
    base = wishes.base_model or artifact.base_model
    if is_local(base):
        raise UserError(
            f"the base model is the local folder {base}: name it as the Hub knows it, with "
            "--base-model org/name"
        )
    return base


def base_card(artifact: Artifact, base: str, api: "HfApi") -> dict[str, Any]:
    """The front matter of the base model's card: from its local folder, else from the Hub.

    Empty where neither has one; raises what huggingface_hub raises where the Hub cannot be asked.
    """
    from huggingface_hub import metadata_load
    from huggingface_hub.errors import RepositoryNotFoundError

    folder = Path(assets.resolve(artifact.base_model))
    if folder.is_dir():
        found = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
        return found or read_json(folder / "config.json")
    try:
        card: Any = api.model_info(base, timeout=30).card_data
    except RepositoryNotFoundError:
        return {}
    return card.to_dict() if card else {}


def front_matter(
    artifact: Artifact, records: Records, wishes: Wishes, inherited: dict[str, Any], repo: str
) -> "ModelCardData":
    """The metadata of the card for `repo`.

    Raises UserError where no license is known: neither wished for nor in the base model's card.
    """
    from huggingface_hub import ModelCardData

    base = base_id(artifact, wishes)
    license = wishes.license or inherited.get("license")
    if not isinstance(license, str):
        raise UserError(
            f"the license of {base} is not known (its card names none): look it up, and give it "
            "with --license, for example --license apache-2.0"
        )
    own = license == inherited.get("license")  # then its name and link are the base's, too
    results = evaluation_results(records)
    data: Any = ModelCardData(
        license=license,
        license_name=inherited.get("license_name") if own else None,
        license_link=inherited.get("license_link") if own else None,
        base_model=base,
        base_model_relation=wishes.relation or relation(artifact, records),
        language=list(wishes.languages) or inherited.get("language"),
        datasets=list(wishes.datasets) or hub_datasets(records) or None,
        library_name=LIBRARIES[artifact.kind],
        pipeline_tag=TASK,
        tags=_tags(artifact, records),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name_of(repo) if results else None,
        eval_results=results or None,
    )
    return data  # type: ignore[no-any-return]


def relation(artifact: Artifact, records: Records) -> Relation:
    """What the model is to its base: an IR of an untrained model is only a quantization of it."""
    if artifact.kind == "adapter":
        return "adapter"
    trained = records.training or (records.export or {}).get("kind") in ("merged", "base+adapters")
    return "quantized" if artifact.kind == "openvino" and not trained else "finetune"


def hub_datasets(records: Records) -> list[str]:
    """The ids of the data sets on the Hub that were trained on; local files are not named there."""
    train = str(records.training["config"]["data"]["train"]) if records.training else ""
    known = _DATASET.fullmatch(train)
    if not known or _DATA_FILE.fullmatch(train) or is_local(train):
        return []
    return [known["id"]]


def evaluation_results(records: Records) -> list[Any]:
    """What was measured on held-out data, for the card's model-index."""
    from huggingface_hub import EvalResult

    gate = (records.export or {}).get("gate")
    if gate:
        kept = kept_row(records)
        source = str(gate["data"]["source"])
        found = {"perplexity": kept["perplexity"], "exact_match": kept.get("exact_match")}
    elif records.training and records.training["eval_loss"] is not None:
        source = str(records.training["config"]["data"].get("eval") or "held-out part of the data")
        found = {"loss": records.training["eval_loss"]}
    else:
        return []
    return [
        EvalResult(TASK, source, source, metric, value)
        for metric, value in found.items()
        if value is not None
    ]


def kept_row(records: Records) -> dict[str, Any]:
    """The gate's row of the model that was kept. Raises UserError where there is none."""
    export = records.export or {}
    for row in export["gate"]["table"]:
        if row["name"] == export["name"]:
            return dict(row)
    raise UserError(f"export.json: its gate has no row for {export['name']}: export it again")


def _tags(artifact: Artifact, records: Records) -> list[str]:
    tags = ["intel-ft"]
    if records.training:
        tags.append(str(records.training["config"]["method"]["name"]))
    elif artifact.kind == "adapter":
        tags.append("lora")
    if records.weights:
        tags += ["openvino", f"{records.weights.bits}-bit"]
    return tags
