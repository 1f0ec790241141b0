"""Generation in torch by families whose cache is not attention's alone."""

import logging

import pytest
import torch
from support.families import architectures

from intel_ft.artifacts.resolve import resolve
from intel_ft.models.exportable import table_version
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.open_model import open_model

NAMES = (
    "Granite 4, attention only",
    "Granite 4, hybrid",
    "Mamba",
    "Falcon H1",
    "LFM 2",
    "Jamba",
    "Qwen 3.5",
    "Gemma 3, with images",
    "gpt-oss",
    "DeepSeek V3",
)
REASONS = {
    "gpt-oss": "`intel-ft export` converts it for OpenVINO",
    "DeepSeek V3": f"Optimum-Intel {table_version()} exports deepseek_v3 with Transformers up to ",
}
"""Why torch generates, for some of them."""


@pytest.mark.parametrize("name", NAMES)
def test_generation_with_the_cache_gives_the_tokens_of_whole_forwards(
    name, tmp_path, caplog
) -> None:
    architectures.write_model(*architectures.FAMILIES[name], tmp_path)
    with caplog.at_level(logging.INFO, logger="intel_ft"):
        model = open_model(resolve(str(tmp_path)), dtype="float32")
    assert f"{tmp_path} runs with torch: {REASONS.get(name, '')}" in caplog.text
    prompt = list(range(40, 60))
    found = model.generate(prompt, Sampling(max_new_tokens=5)).new_tokens
    tokens = list(prompt)
    with torch.no_grad():
        for _ in found:
            logits = model.model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
    assert tokens[len(prompt) :] == list(found)
    batch = model.generate_many([prompt, prompt[:7]], [0, 0], Sampling(max_new_tokens=5))
    assert list(batch[0].new_tokens) == list(found)
