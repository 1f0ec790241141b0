"""Check that an adapter was trained on the given base: same weights, same tokenizer."""

from typing import Any

from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import ADAPTER_CONFIG, Artifact, read_json, trained_token_ids
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.models.tokenizer import PROBE_TEXTS


def require_matching_base(artifact: Artifact, base: ModelConfig) -> None:
    """Raise UserError where `base` is not the model that the adapter was trained on.

    Compares the fingerprint of the base weights, if the adapter's intel_ft.json has one, and the
    tokenizers, if the adapter's folder has one.
    """
    from intel_ft.models.load import fingerprint, load_tokenizer, model_folder  # imports torch

    provenance = Provenance.load(artifact.folder)
    if provenance is not None and provenance.base_weights is not None:
        trained, actual = provenance.base_weights, fingerprint(model_folder(base))
        # A fingerprint is "dtype:hash". Weights of another dtype may be the same model, converted:
        # these cannot be compared.
        if actual and actual != trained and actual.split(":")[0] == trained.split(":")[0]:
            raise UserError(
                f"{artifact.location}: this adapter was not trained on {base.name_or_path}: its "
                f"weights differ from those of {artifact.base_model}, the base model in training"
            )
    if not (artifact.folder / "tokenizer_config.json").is_file():
        return
    adapter_tokenizer = load_tokenizer(
        ModelConfig(name_or_path=artifact.location, trust_remote_code=base.trust_remote_code)
    )
    try:
        base_tokenizer = load_tokenizer(base)
    except UserError:  # a base without a tokenizer has none to differ from
        return
    new = _new_tokens(artifact, adapter_tokenizer, base_tokenizer)
    if difference := _first_difference(adapter_tokenizer, base_tokenizer, new):
        raise UserError(
            f"{artifact.location}: its tokenizer differs from that of its base "
            f"{base.name_or_path}: {difference}; an adapter works only with the tokenizer that it "
            "was trained with"
        )


def _new_tokens(artifact: Artifact, adapter_tokenizer: Any, base_tokenizer: Any) -> set[str]:
    """The tokens that the base's tokenizer has not, and whose embeddings the adapter has."""
    trained, base_ids = trained_token_ids(artifact.folder), base_tokenizer.get_vocab()
    has_whole = bool(read_json(artifact.folder / ADAPTER_CONFIG).get("modules_to_save"))
    return {
        token
        for token, id_ in adapter_tokenizer.get_vocab().items()
        if token not in base_ids and (has_whole or id_ in trained)
    }


def _first_difference(adapter_tokenizer: Any, base_tokenizer: Any, new: set[str]) -> str | None:
    """The first difference between two tokenizers, beside the tokens `new`; None if they agree."""
    adapter_ids, base_ids = adapter_tokenizer.get_vocab(), base_tokenizer.get_vocab()
    for token in sorted((adapter_ids.keys() | base_ids.keys()) - new):
        ours, theirs = adapter_ids.get(token), base_ids.get(token)
        if ours != theirs:
            return f"{token!r} is {_id(ours)} in the adapter's and {_id(theirs)} in the base's"
    for text in PROBE_TEXTS:
        if any(token in text for token in new):
            continue
        if adapter_tokenizer(text)["input_ids"] != base_tokenizer(text)["input_ids"]:
            return f"the same vocabulary, but {text[:24]!r} is encoded differently"
    return None


def _id(number: int | None) -> str:
    return "absent" if number is None else f"token {number}"
