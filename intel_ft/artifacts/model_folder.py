"""Save a complete model so that it stops at the right tokens and keeps its base model's id."""

import json
from pathlib import Path
from typing import Any

BASE_KEY = "_name_or_path"
"""Key in config.json where Optimum-Intel looks for the id of its tuned recipes."""

GENERATION = "generation_config.json"


def save_whole(model: Any, tokenizer: Any, folder: Path, base_model: str, base: Path) -> None:
    """Write the weights and configuration of a Transformers model tuned from `base_model`.

    base: the folder of that model. Its generation_config.json is copied as it is, but for the stop
    tokens of training: Transformers would refuse to save many published ones (such as a temperature
    with do_sample false, or pad_token_id -1), and would change others. A reward model, which
    generates nothing, gets the tokenizer's padding token instead.
    """
    from transformers import GenerationConfig

    generation, values = base / GENERATION, {}
    if generation.is_file():
        values = json.loads(generation.read_text(encoding="utf-8"))
    elif model.can_generate():
        values = model.generation_config.to_diff_dict()
    if not model.can_generate():
        model.config.pad_token_id = padding_token(tokenizer, values.get("eos_token_id"))
        model.save_pretrained(folder, max_shard_size="2GB")
        write_base_id(folder, base_model)
        return
    stops = sorted(stop_tokens(tokenizer, values.get("eos_token_id")))
    values["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    model.generation_config = GenerationConfig()  # can be saved, and is overwritten next
    model.save_pretrained(folder, max_shard_size="2GB")
    _write_json(folder / GENERATION, values)
    write_base_id(folder, base_model)


def padding_token(tokenizer: Any, generation_eos: int | list[int] | None) -> int | None:
    """The tokenizer's padding token, by which Transformers finds the last token of a text.

    None if it may also end an answer: that token would be taken for padding. A reward model without
    one scores one text at a time.
    """
    padding: int | None = tokenizer.pad_token_id
    return None if padding in stop_tokens(tokenizer, generation_eos) else padding


def write_base_id(folder: Path, base_model: str) -> None:
    """Put the base model's id into config.json of `folder`, under the key Optimum-Intel reads.

    Transformers omits that key when it saves (`PreTrainedConfig.to_diff_dict`), so a fine-tuned
    model would miss its base's quantization recipe
    (`optimum.intel.openvino.configuration._get_model_id_candidates`).
    """
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {BASE_KEY: base_model}
    _write_json(path, values)


def stop_tokens(tokenizer: Any, generation_eos: int | list[int] | None) -> frozenset[int]:
    """The ids that end an answer.

    These are the tokenizer's EOS, which training supervised, and those of the base's
    generation_config: a chat model's end of turn often differs from its EOS.
    """
    listed = [generation_eos] if isinstance(generation_eos, int) else generation_eos or []
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return frozenset([*eos, *listed])


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
