"""The mixture that tools/tiny_mixture.py makes is one that Transformers loads whole."""

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from intel_ft import assets
from intel_ft.assets import MODEL

TOOL = Path(__file__).parents[2] / "tools/tiny_mixture.py"


def test_without_noise_the_mixture_predicts_what_the_shipped_model_does(tmp_path) -> None:
    folder = tmp_path / "mixtral"
    subprocess.run([sys.executable, TOOL, folder, "--experts", "3", "--noise", "0"], check=True)
    mixture, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert mixture.config.model_type == "mixtral"
    assert not info["missing_keys"] and not info["unexpected_keys"]
    dense = AutoModelForCausalLM.from_pretrained(assets.resolve(MODEL), dtype=torch.float32)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(mixture(tokens).logits, dense(tokens).logits, atol=1e-3)
    again = subprocess.run(
        [sys.executable, TOOL, folder], check=False, capture_output=True, text=True
    )
    assert again.returncode == 2 and "exists" in again.stderr
