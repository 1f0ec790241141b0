"""A model's local folder and its tokenizer, found and loaded without torch.

An OpenVINO IR runs without torch, which takes seconds to import and much of a container image.
"""

from functools import cache
from pathlib import Path
from typing import Any

from intel_ft import assets
from intel_ft.config import ModelConfig
from intel_ft.errors import EnvironmentProblem, UserError, missing_package


def model_folder(model: ModelConfig, *, weights: bool = True) -> Path:
    """The local folder of a model: a folder, a shipped asset, or a snapshot from the Hub.

    Without `weights`, only the small files are downloaded.
    """
    name = assets.resolve(model.name_or_path)
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name} is a file: give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such model folder")
    patterns = ["*.json", "*.model", "*.jinja", "*.txt"]
    if weights:
        patterns.append("*.safetensors")
    if weights and model.allow_pickle:
        patterns.append("*.bin")
    if model.trust_remote_code:
        patterns.append("*.py")
    return _snapshot(name, model.revision, tuple(patterns))


@cache
def _snapshot(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """A Hub model's folder; cached, so that a run asks the Hub once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError:
        raise UserError(f"{name}: no such model folder, and not a valid Hub id") from None
    except LocalEntryNotFoundError:
        raise EnvironmentProblem(
            f"{name}: no such local folder, and the Hub cannot be reached: download the model on a "
            "machine with network access and give its folder as model.name_or_path"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"{name}: the Hub answered: {error.server_message or error}") from None


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer; raises UserError if the folder has none that works."""
    from transformers import AutoTokenizer

    folder = model_folder(model, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=model.trust_remote_code, use_fast=True
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}: the tokenizer needs custom code from this folder: read the code, then "
                "set model.trust_remote_code=true"
            ) from None
        if missing := missing_package(error):
            raise missing from error
        reason = first_line(error)
        raise UserError(f"{folder}: no tokenizer could be loaded ({reason})") from None
    # Without files, Transformers creates a tokenizer that has special tokens only.
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if tokenizer.vocab_files_names and not any((folder / name).is_file() for name in files):
        raise UserError(f"{folder}: no tokenizer in this model folder (such as tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no eos token, so generation would never stop")
    return tokenizer


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
