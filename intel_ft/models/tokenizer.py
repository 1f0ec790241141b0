"""A model's local folder and its tokenizer, found and loaded without torch.

An OpenVINO IR runs without torch, which takes seconds to import and much of a container image.
"""

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from intel_ft import assets
from intel_ft.artifacts.resolve import ADAPTER_CONFIG, resolve
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import EnvironmentProblem, UserError, missing_package
from intel_ft.models.added_tokens import (
    ExtendedTokenizer,
    copy_files,
    extend,
    require_single,
)
from intel_ft.models.weight_files import refuse_lfs_pointer

logger = logging.getLogger(__name__)

ENOUGH_FOR_PLAN = " (`intel-ft plan` needs only a folder with its config.json)"
"""What follows a message that a model cannot be found."""

# Scripts, spaces and line breaks that a wrong pre-tokenizer or normalizer loses or moves.
PROBE_TEXTS = (
    "The capital of France is Paris.",
    "  two spaces,\ttab\n\nline breaks \n",
    "def f(x):\n    return x**2 + 3.14159  # 1,000",
    "Übergröße, naïve café; Москва — столица",
    "東京は日本の首都です。 北京是中国的首都。 서울",
    "مرحبا بالعالم שלום नमस्ते दुनिया สวัสดี",
    "🙂👩‍👩‍👧 ∑√≠ ﬁ Ⅷ",
)

_OTHER_LAYOUTS = ["consolidated*.safetensors", "original/*", "*/*.safetensors"]
"""Weights that Transformers does not load, and that would double a download."""


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
    return _snapshot(name, model.revision, tuple(patterns), weights=weights)


def adapter_folder(name: str) -> Path:
    """The local folder of the adapter `name` (model.adapter).

    name: the folder of a finished run, an adapter or a checkpoint, or a Hub id. Raises UserError
    for anything else.
    """
    folder = Path(name)
    if folder.exists():
        artifact = resolve(name)
        if artifact.kind != "adapter":
            raise UserError(
                f"model.adapter: {name}: this is not an adapter but a {artifact.kind} model: give"
                " it as model.name_or_path"
            )
        return artifact.folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model.adapter: {name}: no such folder")
    patterns = ("*.json", "*.jinja", "adapter_model.safetensors", "*.model", "*.txt")
    folder = _snapshot(name, None, patterns)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"model.adapter: {name}: no {ADAPTER_CONFIG}, so this is not an adapter")
    return folder


@cache
def _snapshot(
    name: str,
    revision: str | None,
    patterns: tuple[str, ...],
    *,
    weights: bool = True,
) -> Path:
    """A Hub model's folder; cached, so that a run asks the Hub once.

    weights: whether the caller needs them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    plan = "" if weights else ENOUGH_FOR_PLAN  # every command asks for the config first
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=_OTHER_LAYOUTS,
            )
        )
    except HFValidationError:
        raise UserError(f"{name}: no such model folder, and not a valid Hub id") from None
    except LocalEntryNotFoundError:
        raise EnvironmentProblem(
            f"{name}: no such local folder, and the Hub cannot be reached: download the model on a"
            f" machine with network access and give its folder instead{plan}"
        ) from None
    except HfHubHTTPError as error:
        answer = str(error.server_message or error).strip().rstrip(".")
        raise UserError(f"{name}: the Hub answered: {answer}{plan}") from None


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer, which encodes as its tokenizer.json does, with model.add_tokens.

    It is that of model.adapter, if the adapter's folder has one. Raises UserError if the folder has
    none that works.
    """
    folder = _tokenizer_folder(model)
    if not model.new_tokens:
        return _load_from(folder, model.trust_remote_code)
    added = extended_tokenizer(model)
    tokenizer = _load_from(added.folder, model.trust_remote_code)
    require_single(tokenizer, added.ids)
    return tokenizer


def extended_tokenizer(model: ModelConfig) -> ExtendedTokenizer:
    """The tokenizer's files with model.add_tokens and model.add_special_tokens."""
    folder = _tokenizer_folder(model)
    return extend(folder, tuple(model.add_tokens), tuple(model.add_special_tokens))


def _tokenizer_folder(model: ModelConfig) -> Path:
    if model.adapter is not None:
        folder = adapter_folder(model.adapter)
        if (folder / "tokenizer_config.json").is_file():
            return folder
    return model_folder(model, weights=False)


def _load_from(folder: Path, trust_remote_code: bool) -> Any:
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: the only tokenizer file is tokenizer.model, which Transformers converts to"
            " different token ids: copy tokenizer.json and tokenizer_config.json from the model's"
            " page on the Hub into this folder"
        )
    tokenizer = _auto_tokenizer(folder, trust_remote_code)
    # Without files, Transformers creates a tokenizer that has special tokens only.
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if tokenizer.vocab_files_names and not any((folder / name).is_file() for name in files):
        raise UserError(f"{folder}: no tokenizer in this model folder (such as tokenizer.json)")
    if (folder / "tokenizer.json").is_file() and getattr(tokenizer, "backend_tokenizer", None):
        tokenizer = _as_in_file(tokenizer, folder)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no eos token, so generation would never stop")
    return tokenizer


def require_embedded(tokenizer: Any, rows: int, data: Iterable[npt.NDArray[Any]]) -> None:
    """Raise UserError if `data`, arrays of token ids, has ids beyond the `rows` of the embedding.

    Such tokens were added to the tokenizer while the model was not resized. A warning names those
    that the data does not have.
    """
    missing = {index: text for text, index in tokenizer.get_vocab().items() if index >= rows}
    if not missing:
        return
    fact = (
        f"{tokenizer.name_or_path}: the tokenizer has tokens up to id {max(missing)}, the embedding"
        f" has {rows} rows"
    )
    beyond = [tokens[tokens >= rows] for tokens in data]
    if used := sorted({int(index) for ids in beyond for index in np.unique(ids)}):
        names = ", ".join(f"{missing.get(index)!r} ({index})" for index in used[:3])
        raise UserError(
            f"{fact}, and {names} is used: resize the model (Transformers'"
            " resize_token_embeddings) and save it again, or use the model's original tokenizer"
        )
    logger.warning("%s: %r cannot be used in a prompt", fact, next(iter(missing.values())))


def copy_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write `tokenizer`, as `load_tokenizer` returned it, to `folder`: its own files, unchanged.

    Transformers would write them anew, with other settings and, for some, other token ids.
    """
    source = Path(tokenizer.name_or_path)
    if not (source / "tokenizer.json").is_file():
        tokenizer.save_pretrained(folder)
        return
    own_code = type(tokenizer).__module__.startswith("transformers_modules")
    copy_files(source, folder, own_code=own_code)


def _auto_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, use_fast=True
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}: the tokenizer needs custom code from this folder: read the code, then "
                "set model.trust_remote_code=true"
            ) from None
        if missing := missing_package(error):
            raise missing from error
        for path in folder.glob("tokenizer*"):
            refuse_lfs_pointer(path)
        reason = first_line(error)
        raise UserError(f"{folder}: no tokenizer could be loaded ({reason})") from None


def _as_in_file(tokenizer: Any, folder: Path) -> Any:
    """`tokenizer`, or if it encodes otherwise than tokenizer.json in `folder`, that file's.

    Transformers builds some classes (Llama's) anew from the vocabulary alone, with a pre-tokenizer
    that a byte-level tokenizer.json does not have: spaces and whole scripts are lost then.
    """
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:  # it takes the file as it is
        return tokenizer
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = _first_difference(tokenizer.backend_tokenizer, own)
    if text is None:
        return tokenizer
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: getattr(tokenizer, name) for name in names}
    vocabulary = own.get_vocab(with_added_tokens=True)
    known = {name: token for name, token in special.items() if token in vocabulary}
    exact = PreTrainedTokenizerFast.from_pretrained(folder, **known)
    if _first_difference(exact.backend_tokenizer, own) is not None:
        raise UserError(
            f"{folder}: Transformers encodes {text[:24]!r} differently from tokenizer.json in this"
            " folder: remove what changes it (such as add_prefix_space) from tokenizer_config.json"
        )
    logger.info(
        "tokenizer: %s would encode %r differently from tokenizer.json: the file is used",
        type(tokenizer).__name__,
        text[:24],
    )
    return exact


def _first_difference(loaded: Tokenizer, own: Tokenizer) -> str | None:
    """The first probe text that the two encode or decode differently, None where they agree."""
    for text in PROBE_TEXTS:
        ids = own.encode(text, add_special_tokens=False).ids
        try:
            same = loaded.encode(text, add_special_tokens=False).ids == ids
            same = same and loaded.decode(ids) == own.decode(ids)
        except Exception:  # tokenizers raises no narrower one, as for an unknown token it lacks
            same = False
        if not same:
            return text
    return None


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
