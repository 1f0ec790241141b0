"""Save a complete model so that it stops at the right tokens and keeps its base model's id."""

import json
from pathlib import Path
from typing import Any

BASE_KEY = "_name_or_path"
"""Key in config.json where Optimum-Intel looks for the id of its tuned recipes."""


def save_whole(model: Any, tokenizer: Any, folder: Path, base_model: str) -> None:
    """Write the weights and configuration of a Transformers model tuned from `base_model`."""
    model.generation_config = _valid_generation(model.generation_config, tokenizer)
    model.save_pretrained(folder, max_shard_size="2GB")
    write_base_id(folder, base_model)


def write_base_id(folder: Path, base_model: str) -> None:
    """Put the base model's id into config.json of `folder`, under the key Optimum-Intel reads.

    Transformers omits that key when it saves (`PreTrainedConfig.to_diff_dict`), so a fine-tuned
    model would miss its base's quantization recipe
    (`optimum.intel.openvino.configuration._get_model_id_candidates`).
    """
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {BASE_KEY: base_model}
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def stop_tokens(tokenizer: Any, generation_eos: int | list[int] | None) -> frozenset[int]:
    """The ids that end an answer.

    These are the tokenizer's EOS, which training supervised, and those of the base's
    generation_config: a chat model's end of turn often differs from its EOS.
    """
    listed = [generation_eos] if isinstance(generation_eos, int) else generation_eos or []
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return frozenset([*eos, *listed])


def _valid_generation(generation: Any, tokenizer: Any) -> Any:
    """The base's generation config with the stop tokens of training, in a form that can be saved.

    Llama 2 and others ship sampling values with do_sample false, which Transformers 5 loads with a
    warning but refuses to save.
    """
    stops = sorted(stop_tokens(tokenizer, generation.eos_token_id))
    generation.eos_token_id = stops[0] if len(stops) == 1 else stops
    sampling = (generation.temperature, generation.top_p, generation.top_k)
    if not generation.do_sample and any(value is not None for value in sampling):
        generation.do_sample = True
    return generation
