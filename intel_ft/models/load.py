"""Loading a base model and its tokenizer, refusing what is unsafe or broken before torch sees it;
called from training, export and inference.

What needs no torch is in models.tokenizer, and offered here too.
"""

import hashlib
import json
import math
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from intel_ft.config import ModelConfig
from intel_ft.errors import UserError
from intel_ft.models import packed_attention
from intel_ft.models.tokenizer import first_line, load_tokenizer, model_folder

__all__ = ["load_tokenizer", "model_folder"]  # from models.tokenizer; what is defined here, too

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def check_folder(folder: Path, model: ModelConfig) -> None:
    """Refuse a folder without usable weights, with pickle weights, or that needs its own code."""
    config = _read_config(folder)
    if not model.trust_remote_code and not _known_architecture(config):
        if "auto_map" in config:
            raise UserError(
                f"{folder}: this model needs code of its own ({config.get('model_type')}): read "
                "it, then set model.trust_remote_code=true"
            )
        raise UserError(
            f"{folder / 'config.json'}: model_type {config.get('model_type')!r} is not a causal "
            "language model that the installed Transformers knows"
        )
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights:
        _check_safetensors(path)
    if not weights:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLE_SUFFIXES]
        if pickles and not model.allow_pickle:
            raise UserError(
                f"{folder / pickles[0]}: pickle weights can run code when loaded: convert them to "
                "safetensors, or set model.allow_pickle=true if you trust the file"
            )
        if not pickles:
            raise UserError(f"{folder}: no weights (*.safetensors) in this model folder")


def parameter_count(folder: Path) -> int:
    """Parameters in the folder's weights, read from the headers alone."""
    safetensors = sorted(folder.glob("*.safetensors"))
    if not safetensors:  # pickles do not say; two bytes a parameter is usual
        return sum(path.stat().st_size for path in folder.glob("*.bin")) // 2
    return sum(
        math.prod(entry["shape"])
        for path in safetensors
        for key, entry in _check_safetensors(path).items()
        if key != "__metadata__"
    )


def fingerprint(folder: Path) -> str | None:
    """What tells these weights from others in a moment: their dtypes, a colon, and a SHA-256 of
    each tensor's name, shape and first 64 bytes, in whatever files they are; None for pickles.
    """
    samples, dtypes = {}, set()
    for path in sorted(folder.glob("*.safetensors")):
        header = _check_safetensors(path)
        with path.open("rb") as file:
            start = 8 + struct.unpack("<Q", file.read(8))[0]
            for name, entry in header.items():
                if name != "__metadata__":
                    file.seek(start + entry["data_offsets"][0])
                    size = entry["data_offsets"][1] - entry["data_offsets"][0]
                    samples[name] = (entry["shape"], file.read(min(64, size)).hex())
                    dtypes.add(entry["dtype"])
    if not samples:
        return None
    digest = hashlib.sha256(json.dumps(sorted(samples.items())).encode()).hexdigest()
    return f"{'+'.join(sorted(dtypes))}:{digest}"


def load_base(model: ModelConfig, dtype: torch.dtype, attention: str | None = None) -> Any:
    """The frozen base model in `dtype`, in eval mode.

    `attention` is a name Transformers knows, `packed.NAME`, or None for the best of Transformers'
    own that the architecture has (Bloom and GPT-OSS have no sdpa). Raises UserError for anything
    wrong with the folder; ValueError if the architecture does not support that attention.
    """
    folder = model_folder(model)
    check_folder(folder, model)
    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=not model.allow_pickle or any(folder.glob("*.safetensors")),
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        if "alloc" in str(error):
            raise
        raise UserError(f"{folder}: the weights cannot be loaded ({first_line(error)})") from None
    if absent := sorted(info["missing_keys"]):
        raise UserError(f"{folder}: {len(absent)} weights are missing, {absent[0]} the first")
    return loaded.eval().requires_grad_(False)


def load_for_packing(model: ModelConfig, dtype: torch.dtype) -> tuple[Any, str | None]:
    """The base with packed attention and None; or with its own attention and why not packed."""
    folder = model_folder(model)
    check_folder(folder, model)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(
        type(AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)), None
    )
    if architecture is None or not architecture._supports_attention_backend:
        return load_base(model, dtype), "its attention cannot be exchanged"
    base = load_base(model, dtype, packed_attention.NAME)
    if reason := packed_attention.why_not_packable(base):
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    return base, reason


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json: this is not a model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({first_line(error)})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object")
    return config


def _known_architecture(config: dict[str, Any]) -> bool:
    try:
        known = AutoConfig.for_model(str(config.get("model_type")))
    except ValueError:
        return False
    return type(known) in MODEL_FOR_CAUSAL_LM_MAPPING


def _check_safetensors(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, after checking that the file is as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise UserError(f"{path}: not a whole safetensors file (no header): copy it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            end = max(
                (
                    entry["data_offsets"][1]
                    for key, entry in header.items()
                    if key != "__metadata__"
                ),
                default=0,
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: not a safetensors file (broken header)") from None
    if size != 8 + length + end:
        raise UserError(
            f"{path}: cut off or damaged ({size} bytes, its header says {8 + length + end}): copy "
            "it again"
        )
    return header
