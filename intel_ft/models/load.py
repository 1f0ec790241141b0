"""Loads a base model, after refusing folders that are unsafe, damaged or of another kind.

What needs no torch is in models.tokenizer, and re-exported here.
"""

import hashlib
import json
import logging
import math
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import GENERATION_CONFIG_NAME

from intel_ft.artifacts.resolve import ADAPTER_CONFIG, is_reward_model, read_json
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.layers import packed_attention
from intel_ft.models.published import lazy_weights, one_at_a_time
from intel_ft.models.quantized import forget_quantization, published, refuse_quantized
from intel_ft.models.tokenizer import first_line, load_tokenizer, model_folder
from intel_ft.models.weight_files import open_safetensors, weight_files
from intel_ft.plurals import count_of

__all__ = ["load_tokenizer", "model_folder"]  # re-exported from models.tokenizer

StreamedLayout = Literal["int8", "nf4"]
"""What models.streamed converts to."""

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

logger = logging.getLogger(__name__)


_BOTH_WAYS: dict[str, tuple[object, ...]] = {
    "is_decoder": (False,),
    "causal": (False,),
    "use_bidirectional_attention": (True, "all"),
    "attn_type": ("bi",),
}
"""Keys of config.json, and the values with which a model is bidirectional."""
_ALWAYS_CAUSAL = ("gpt_neox", "gpt_neox_japanese", "trocr")  # whatever is_decoder is


def check_folder(folder: Path, model: ModelConfig, *, scores: bool = False) -> None:
    """Refuse a folder without usable weights, with pickle weights, or that needs custom code.

    Also a reward model, unless `scores`.
    """
    config = _read_config(folder)
    if is_reward_model(folder) and not scores:
        raise UserError(
            f"{folder}: this is a reward model, which scores answers but does not write them: give"
            " a language model"
        )
    if not model.trust_remote_code and not _is_causal_lm(config):
        if "auto_map" in config:
            raise UserError(
                f"{folder}: this model needs custom code from this folder (model_type "
                f"{config.get('model_type')}): read the code, then set model.trust_remote_code=true"
            )
        raise UserError(
            f"{folder / 'config.json'}: model_type {config.get('model_type')!r} is not a causal "
            "language model that the installed version of Transformers supports"
        )
    refuse_quantized(folder, training=False)
    weights = weight_files(folder)
    for path in weights:
        with open_safetensors(path):
            pass
    if not weights:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLE_SUFFIXES]
        if pickles and not model.allow_pickle:
            raise UserError(
                f"{folder / pickles[0]}: loading pickle weights can run code: convert them to "
                "safetensors, or set model.allow_pickle=true if you trust the file"
            )
        if not pickles:
            raise UserError(f"{folder}: no weights (*.safetensors) in this model folder")


def description_of(config: ModelConfig) -> Any:
    """The model's config.json as Transformers reads it."""
    folder = model_folder(config, weights=False)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: its config.json cannot be used ({reason})") from None


def refuse_both_ways(folder: Path, description: Any) -> None:
    """Raise UserError for a bidirectional model: its tokens see later ones, so their own labels.

    Transformers lists such models as causal because other values in their config make them causal.
    """
    text = description.get_text_config()
    if getattr(text, "is_encoder_decoder", False) or text.model_type in _ALWAYS_CAUSAL:
        return
    for key, values in _BOTH_WAYS.items():
        if key in getattr(type(text), "__dataclass_fields__", {}) and getattr(text, key) in values:
            raise UserError(
                f"{folder / 'config.json'}: {key} is {json.dumps(getattr(text, key))}, so this"
                f" {text.model_type} attends in both directions and would see the answers that it"
                " learns to predict: give a model that generates text"
            )


def loaded_model_type(description: Any) -> str:
    """The model_type of the causal language model that this config.json is loaded as.

    It is the text model's, where Transformers takes that out of a multimodal model.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(description), None)
    text = description.sub_configs.get("text_config")
    if text is not None and getattr(model_class, "config_class", None) is text:
        return str(description.get_text_config().model_type)
    return str(description.model_type)


def check_base(folder: Path, model: ModelConfig) -> None:
    """Refuse a folder that `check_folder` refuses, and weights that can only infer."""
    check_folder(folder, model)
    refuse_quantized(folder, training=True)


def parameter_count(folder: Path) -> int:
    """Parameters in the folder's weights, read from the headers alone."""
    safetensors = weight_files(folder)
    if not safetensors:  # pickles have no header; two bytes per parameter is usual
        return sum(path.stat().st_size for path in folder.glob("*.bin")) // 2
    count = 0
    for path in safetensors:
        with open_safetensors(path) as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - safe_open is no mapping
    return count


def fingerprint(folder: Path) -> str | None:
    """What distinguishes these weights from others, in a moment: dtypes, a colon and a SHA-256.

    The hash covers each tensor's name, shape and first 64 bytes, however the tensors are split into
    files. None for pickles.
    """
    samples, dtypes = {}, set()
    for path in weight_files(folder):
        with open_safetensors(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                entry, values = file.get_slice(name), file.get_tensor(name).flatten()
                start = values[:64].view(torch.uint8)[:64].numpy().tobytes()
                samples[name] = (entry.get_shape(), start.hex())
                dtypes.add(entry.get_dtype())
    if not samples:
        return None
    digest = hashlib.sha256(json.dumps(sorted(samples.items())).encode()).hexdigest()
    return f"{'+'.join(sorted(dtypes))}:{digest}"


def load_base(
    model: ModelConfig,
    dtype: torch.dtype | Literal["auto"],
    attention: str | None = None,
    layout: StreamedLayout | None = None,
) -> Any:
    """The frozen base model in `dtype` (auto: that of its files), in eval mode.

    `attention` is one of Transformers' names, `packed_attention.NAME`, or None for the best that
    the architecture has (Bloom and GPT-OSS have no sdpa). layout: what linear layers and experts
    are converted to as they are read; see models.streamed. Raises UserError for anything wrong with
    the folder, ValueError if the architecture does not support that attention.
    """
    folder = model_folder(model)
    check_folder(folder, model)
    settings = {"dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
    try:
        if _reads_lazily(folder, layout):
            loaded, info = _load_lazily(folder, layout, settings)
        else:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=not model.allow_pickle or bool(weight_files(folder)),
                trust_remote_code=model.trust_remote_code,
                **settings,
            )
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        if "alloc" in str(error):
            raise
        raise unloadable(folder, error) from None
    check_complete(folder, info)
    _mark_as_text(loaded)
    _skip_state_mask(loaded)
    return loaded.eval().requires_grad_(False)


def _reads_lazily(folder: Path, layout: str | None) -> bool:
    """Whether weights are converted as they are read; a model with code of its own reads itself."""
    if not weight_files(folder) or not _is_causal_lm(_read_config(folder)):
        return False
    return layout is not None or published(folder) is not None


def is_pickled(model: ModelConfig) -> bool:
    """Whether the model has only pickled weights, which are not converted while they are loaded."""
    if not model.allow_pickle:
        return False
    folder = model_folder(model, weights=False)
    pickles = [path for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES]
    return bool(pickles) and not any(folder.glob("*.safetensors"))


def _load_lazily(
    folder: Path, layout: StreamedLayout | None, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """As `from_pretrained`, from weights that are dequantized and converted as they are read."""
    description = AutoConfig.from_pretrained(folder)
    forget_quantization(description)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(description)]
    if loaded_model_type(description) != description.model_type:
        description = description.get_text_config()
    if layout is not None:
        from intel_ft.models.streamed import StreamedConfig

        settings["quantization_config"] = StreamedConfig(layout)
    form = published(folder)
    weights = lazy_weights(folder, None if form is None else form.block)
    with one_at_a_time():
        loaded, info = model_class.from_pretrained(
            None, config=description, state_dict=weights, **settings
        )
    loaded.config._name_or_path = str(folder)
    generation = folder / GENERATION_CONFIG_NAME
    if generation.is_file() and loaded.can_generate():
        loaded.generation_config = GenerationConfig.from_pretrained(folder)
    return loaded, info


_TOKEN_TYPES = {"gemma3": "token_type_ids", "gemma4": "mm_token_type_ids"}
"""The argument by which these multimodal models want to know, in training, what an image is."""


def _mark_as_text(model: Any) -> None:
    """Let a multimodal model train on text: without images, all tokens are of type 0."""
    name = _TOKEN_TYPES.get(model.config.model_type)
    if name is None:
        return

    def mark(inner: Any, positional: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        tokens = inputs.get("input_ids")
        if inner.training and tokens is not None and inputs.get(name) is None:
            inputs[name] = torch.zeros_like(tokens)
        return positional, inputs

    model.model.register_forward_pre_hook(mark, with_kwargs=True)


def _skip_state_mask(model: Any) -> None:
    """Let a hybrid family's model of attention layers alone (Granite 4 Micro) generate.

    Transformers 5.5 asks its cache for the state of a layer that there is none of, and raises.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    decoder = model.get_decoder()
    if hasattr(decoder, "_update_mamba_mask") and kinds and kinds <= {"attention"}:
        decoder._update_mamba_mask = lambda *_, **__: None


def load_for_packing(
    model: ModelConfig,
    dtype: torch.dtype | Literal["auto"],
    layout: StreamedLayout | None = None,
) -> tuple[Any, str | None]:
    """The base with packed attention and None; or with its own attention and why not packed.

    layout: see `load_base`.
    """
    folder = model_folder(model)
    check_folder(folder, model)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(
        type(AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)), None
    )
    if architecture is None or not architecture._supports_attention_backend:
        return load_base(model, dtype, layout=layout), "its attention cannot be replaced"
    base = load_base(model, dtype, packed_attention.NAME, layout)
    if reason := packed_attention.why_not_packable(base):
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    return base, reason


def unloadable(folder: Path, error: Exception) -> UserError:
    """The refusal of weights that Transformers could not load."""
    if "ignore_mismatched_sizes" in str(error):
        return UserError(
            f"{folder}: the shapes of its weights do not match its config.json: copy or download"
            " the model again"
        )
    return UserError(f"{folder}: the weights cannot be loaded ({first_line(error)})")


def check_complete(folder: Path, info: Mapping[str, Iterable[str]]) -> None:
    """Raise UserError where weights are missing, and warn of tensors that the model does not have.

    info: the loading_info of from_pretrained.
    """
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{folder}: {len(missing)} of the model's weights are not in its files, such as"
            f" {missing[0]}: copy or download the model again"
        )
    if unused := sorted(info["unexpected_keys"]):
        logger.warning(
            "%s: not used, because the model has no place for it: %s, such as %s",
            folder,
            count_of(len(unused), "tensor"),
            unused[0],
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        found = [one for one in (folder, folder / "adapter") if (one / ADAPTER_CONFIG).is_file()]
        if found:
            base = read_json(found[0] / ADAPTER_CONFIG).get("base_model_name_or_path")
            raise UserError(
                f"{folder}: this is a LoRA adapter, not a model: merge it with `intel-ft merge`, "
                f"or give its base ({base}) as model.name_or_path"
            )
        if (folder / "model" / "config.json").is_file():
            raise UserError(f"{folder}: this is a run's folder: give {folder / 'model'}")
        if any(folder.glob("*.gguf")):
            raise UserError(
                f"{folder}: GGUF weights cannot be used: give a folder with safetensors"
            )
        raise UserError(f"{folder}: no config.json, so this is not a model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON ({first_line(error)})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object")
    return config


def _is_causal_lm(config: dict[str, Any]) -> bool:
    try:
        default = AutoConfig.for_model(str(config.get("model_type")))
    except ValueError:
        return False
    return type(default) in MODEL_FOR_CAUSAL_LM_MAPPING
