"""Whether an adapter was trained on this base: its weights and its tokenizer; called from
export.merge and export.adapters.
"""

from typing import Any

from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import Artifact
from intel_ft.config import ModelConfig
from intel_ft.errors import UserError
from intel_ft.export.logit_agreement import TEXTS


def require_belonging(artifact: Artifact, base: ModelConfig) -> None:
    """Raise UserError, naming both, where `base` is another model than the adapter was trained on,
    as far as its record tells, or has another tokenizer than the one that lies with the adapter.
    """
    from intel_ft.models.load import fingerprint, load_tokenizer, model_folder

    provenance = Provenance.load(artifact.folder)
    if provenance is not None and provenance.base_weights is not None:
        trained, now = provenance.base_weights, fingerprint(model_folder(base))
        # Weights of another dtype may be the same model, converted: that cannot be told.
        if now and now != trained and now.split(":")[0] == trained.split(":")[0]:
            raise UserError(
                f"{artifact.location}: this adapter was not trained on {base.name_or_path}: the "
                f"weights there differ from those of {artifact.base_model} that it was trained on"
            )
    if not (artifact.folder / "tokenizer_config.json").is_file():
        return
    own = load_tokenizer(
        ModelConfig(name_or_path=artifact.location, trust_remote_code=base.trust_remote_code)
    )
    try:
        theirs = load_tokenizer(base)
    except UserError:  # a base without a tokenizer has none to differ from
        return
    if difference := _difference(own, theirs):
        raise UserError(
            f"{artifact.location}: its tokenizer is not that of its base {base.name_or_path}: "
            f"{difference}; an adapter works with the tokenizer it was trained with alone"
        )


def _difference(own: Any, theirs: Any) -> str | None:
    """One thing that two tokenizers do differently, None where they agree."""
    first, second = own.get_vocab(), theirs.get_vocab()
    for token in sorted(first.keys() | second.keys()):
        here, there = first.get(token), second.get(token)
        if here != there:
            return f"{token!r} is {_id(here)} in the adapter's and {_id(there)} in the base's"
    for text in TEXTS:
        if own(text)["input_ids"] != theirs(text)["input_ids"]:
            return f"the same vocabulary, but {text[:24]!r} becomes other ids"
    return None


def _id(number: int | None) -> str:
    return "absent" if number is None else f"token {number}"
