"""What a run starts from besides its base: an adapter (model.adapter), read from its folder.

An adapter that is trained further keeps its own rank, targets and kind, so the config takes them
from it before anything is decided; a value in the config that contradicts one is refused.
"""

import logging
from pathlib import Path
from typing import Any

from peft import LoraConfig

from intel_ft.artifacts.fingerprints import weights_fingerprint
from intel_ft.artifacts.provenance import Provenance, StartAdapter
from intel_ft.artifacts.resolve import HUB_ID, Artifact, resolve, trained_token_ids
from intel_ft.config import Config, build
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.models.adapter import WEIGHTS
from intel_ft.models.adapter_match import require_matching_base
from intel_ft.models.load import description_of
from intel_ft.models.start_adapter import read_config
from intel_ft.models.targets import ALL_LINEAR, choose_targets, linear_layers, matches
from intel_ft.models.tokenizer import adapter_folder
from intel_ft.training.model_sizes import without_weights

logger = logging.getLogger(__name__)


def with_adapter(config: Config) -> Config:
    """`config` with the method's settings of the adapter that is trained further, if there is one.

    Raises UserError for an adapter that cannot be trained, and for a setting in the config that
    contradicts it.
    """
    if config.model.continued_adapter is None:
        return config
    folder = adapter_folder(config.model.continued_adapter)
    adapter = read_config(folder)
    own = _settings(adapter)
    for name in own.keys() & config.method.model_fields_set:
        value = getattr(config.method, name)
        if value != own[name] and not _same_modules(config, name, adapter):
            raise UserError(
                f"method.{name}={value}: the adapter in {folder} has {own[name]}: leave it out, or"
                " set model.adapter_mode=merge to start a new adapter"
            )
    values = config.model_dump()
    return build(values | {"method": values["method"] | own}, f"model.adapter={folder}")


def _settings(adapter: LoraConfig) -> dict[str, Any]:
    """What our config says of an adapter, under the names of its method section."""
    targets, saved = adapter.target_modules, adapter.modules_to_save
    return {
        "r": adapter.r,
        "alpha": float(adapter.lora_alpha),
        "dropout": adapter.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "modules_to_save": sorted(saved or []),
        "use_dora": adapter.use_dora,
        "use_rslora": adapter.use_rslora,
    }


def _same_modules(config: Config, name: str, adapter: LoraConfig) -> bool:
    """Whether the config's value of a key that names modules means the adapter's modules."""
    if name not in ("target_modules", "modules_to_save"):
        return False
    model = without_weights(config.model, description_of(config.model))
    given, own = getattr(config.method, name), _settings(adapter)[name]
    if name == "modules_to_save":
        names = [module for module, _ in model.named_modules()]
        return {n for n in names if matches(given, n)} == {n for n in names if matches(own, n)}
    linear = linear_layers(model)
    targets = choose_targets(model, MethodConfig(target_modules=given))
    if {*targets.parameters} != {*(adapter.target_parameters or [])}:
        return False
    chosen = targets.modules
    if not isinstance(chosen, str) and not isinstance(own, str) and set(chosen) == set(own):
        return True
    wanted = {n for n in linear if chosen == ALL_LINEAR or matches(chosen, n)}
    return wanted == {n for n in linear if own == ALL_LINEAR or matches(own, n)}


def check_adapter(model: ModelConfig, tokenizer: Any) -> None:
    """Raise UserError if base or tokenizer are not those that model.adapter was trained with.

    Without a fingerprint in the adapter's folder, two Hub ids are compared; where one of the names
    is a path, only the shapes are, later.
    """
    if model.adapter is None:
        return
    artifact = resolve(str(adapter_folder(model.adapter)))
    require_matching_base(artifact, model.base)
    trained = trained_token_ids(artifact.folder)
    if trained and model.base_dtype == "int4":
        raise UserError(
            f"model.adapter={model.adapter}: it has the embeddings of new tokens, which"
            " model.base_dtype=int4 cannot hold: choose another base_dtype"
        )
    if missing := trained - set(tokenizer.get_vocab().values()):
        raise UserError(
            f"model.adapter={model.adapter}: it has embeddings of tokens such as {min(missing)},"
            " which the tokenizer does not have: give the folder of its run, or of an adapter with"
            " its tokenizer"
        )
    if artifact.base_model == model.name_or_path or _has_fingerprint(artifact):
        return
    if all(_is_hub_id(name) for name in (artifact.base_model, model.name_or_path)):
        raise UserError(
            f"model.adapter={model.adapter}: it was trained on {artifact.base_model}, not on"
            f" {model.name_or_path}: set model.name_or_path to its base"
        )
    logger.warning(
        "model.adapter: %s names %s as its base, without a fingerprint of the weights: whether"
        " that is %s is not checked beyond the shapes",
        model.adapter,
        artifact.base_model,
        model.name_or_path,
    )


def _has_fingerprint(artifact: Artifact) -> bool:
    provenance = Provenance.load(artifact.folder)
    return provenance is not None and provenance.base_weights is not None


def _is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and "/" in name and not Path(name).exists()


def adapter_fingerprint(model: ModelConfig) -> str | None:
    """The fingerprint of the weights of model.adapter, or None without one."""
    if model.adapter is None:
        return None
    return weights_fingerprint([adapter_folder(model.adapter) / WEIGHTS])


def start_of(model: ModelConfig) -> StartAdapter | None:
    """What intel_ft.json says of model.adapter: a name without path, the mode, a fingerprint."""
    if model.adapter is None:
        return None
    folder, name = Path(model.adapter), model.adapter
    if folder.is_dir():
        parts = adapter_folder(name).resolve().parts
        name = parts[-2] if parts[-1] == "adapter" else "/".join(parts[-2:])
    return StartAdapter(name, model.adapter_mode, str(adapter_fingerprint(model)))
