"""The card's front matter, with what it inherits from the base model's card.

The fields are described at https://huggingface.co/docs/hub/model-cards#model-card-metadata.
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
class CardOptions:
    """What the user states about the model; None or empty where the records decide."""

    base_model: str | None = None
    relation: Relation | None = None
    license: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()


def name_of(repo: str) -> str:
    """The name in `org/name`."""
    return repo.rpartition("/")[2]


def base_id(artifact: Artifact, options: CardOptions) -> str:
    """The base model's id on the Hub. Raises UserError where only a local folder is known."""
    base = options.base_model or artifact.base_model
    if is_local(base):
        raise UserError(
            f"the base model is the local folder {base}: give its id on the Hub with "
            "--base-model org/name"
        )
    return base


def base_card(artifact: Artifact, base: str, api: "HfApi") -> dict[str, Any]:
    """The front matter of the base model's card: from its local folder, else from the Hub.

    Empty where neither has one. Raises what huggingface_hub raises where the Hub does not answer.
    """
    from huggingface_hub import metadata_load
    from huggingface_hub.errors import RepositoryNotFoundError

    folder = Path(assets.resolve(artifact.base_model))
    if folder.is_dir():
        metadata = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
        return metadata or read_json(folder / "config.json")
    try:
        card: Any = api.model_info(base, timeout=30).card_data
    except RepositoryNotFoundError:
        return {}
    return card.to_dict() if card else {}


def front_matter(
    artifact: Artifact, records: Records, options: CardOptions, inherited: dict[str, Any], repo: str
) -> "ModelCardData":
    """The metadata of the card for `repo`.

    Raises UserError where neither `options` nor the base model's card names a license.
    """
    from huggingface_hub import ModelCardData

    base = base_id(artifact, options)
    license_id = options.license or inherited.get("license")
    if not isinstance(license_id, str):
        raise UserError(
            f"the license of {base} is unknown (its card names none): look it up and set it, for "
            "example --license apache-2.0"
        )
    is_base_license = license_id == inherited.get("license")  # then its name and link are valid too
    results = evaluation_results(records)
    data: Any = ModelCardData(
        license=license_id,
        license_name=inherited.get("license_name") if is_base_license else None,
        license_link=inherited.get("license_link") if is_base_license else None,
        base_model=base,
        base_model_relation=options.relation or relation(artifact, records),
        language=list(options.languages) or inherited.get("language"),
        datasets=list(options.datasets) or hub_datasets(records) or None,
        library_name=LIBRARIES[artifact.kind],
        pipeline_tag=TASK,
        tags=_tags(artifact, records),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name_of(repo) if results else None,
        eval_results=results or None,
    )
    return data  # type: ignore[no-any-return]


def relation(artifact: Artifact, records: Records) -> Relation:
    """The model's relation to its base; the IR of an untrained model is a quantization of it."""
    if artifact.kind == "adapter":
        return "adapter"
    trained = records.training or (records.export or {}).get("kind") in ("merged", "base+adapters")
    return "quantized" if artifact.kind == "openvino" and not trained else "finetune"


def hub_datasets(records: Records) -> list[str]:
    """The Hub ids of the datasets trained on; local files have none."""
    train = records.training["config"]["data"]["train"] if records.training else []
    sources = [str(one["path"]) for one in train] if isinstance(train, list) else [str(train)]
    matches = [
        match
        for source in sources
        if not _DATA_FILE.fullmatch(source) and not is_local(source)
        if (match := _DATASET.fullmatch(source))
    ]
    return list(dict.fromkeys(match["id"] for match in matches))


def evaluation_results(records: Records) -> list[Any]:
    """What was measured on validation data, for the card's model-index."""
    from huggingface_hub import EvalResult

    gate = (records.export or {}).get("gate")
    if gate:
        row = selected_row(records)
        source = str(gate["data"]["source"])
        metrics = {"perplexity": row["perplexity"], "exact_match": row.get("exact_match")}
    elif records.training and records.training["eval_loss"] is not None:
        source = str(
            records.training["config"]["data"].get("eval") or "validation split of the data"
        )
        metrics = {"loss": records.training["eval_loss"]}
    else:
        return []
    return [
        EvalResult(TASK, source, source, metric, value)
        for metric, value in metrics.items()
        if value is not None
    ]


def selected_row(records: Records) -> dict[str, Any]:
    """The gate's row of the selected candidate. Raises UserError where there is none."""
    export = records.export or {}
    for row in export["gate"]["table"]:
        if row["name"] == export["name"]:
            return dict(row)
    raise UserError(
        f"export.json: no row for {export['name']} in its gate table: export the model again"
    )


def _tags(artifact: Artifact, records: Records) -> list[str]:
    tags = ["intel-ft"]
    if records.training:
        tags.append(str(records.training["config"]["method"]["name"]))
    elif artifact.kind == "adapter":
        tags.append("lora")
    if records.weights:
        tags += ["openvino", f"{records.weights.bits}-bit"]
    return tags
