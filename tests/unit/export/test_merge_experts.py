"""Merging mixtures of experts: right merges pass although rounding changes a token's experts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from support.families import architectures

from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import IntelFTError
from intel_ft.export.logit_agreement import typical_error
from intel_ft.export.merge import merge
from intel_ft.models.adapter import add_lora, save_adapter
from intel_ft.models.load import load_base

# DeepSeek V3: an RMS over positions was 1.7 times that of one more rounding, for a right merge.
FAMILIES = ("DeepSeek V3", "Mixtral")


@pytest.fixture(scope="module", params=FAMILIES)
def adapter(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    architectures.write_model(*architectures.FAMILIES[request.param], folder / "base")
    base = load_base(ModelConfig(name_or_path=str(folder / "base")), torch.bfloat16)
    model = add_lora(base, MethodConfig(r=4, alpha=16), str(folder / "base"), None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.002, generator=generator)
    save_adapter(model, folder / "adapter")
    return folder / "adapter"


def test_a_right_merge_is_within_rounding(adapter, tmp_path) -> None:
    report = merge(str(adapter), tmp_path / "merged")
    assert 0 < report.rounding < report.adapter_effect


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_a_merge_with_another_scale_is_refused(adapter, tmp_path, monkeypatch, factor) -> None:
    def wrong(self):
        for module in self.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] *= factor
        return self.base_model.merge_and_unload()

    # PeftModel has no method of this name; it passes the attribute on to its tuner.
    monkeypatch.setattr(PeftModel, "merge_and_unload", wrong, raising=False)
    with pytest.raises(IntelFTError, match="does not agree with base plus adapter"):
        merge(str(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_positions_whose_logits_are_all_equal_count_as_they_are() -> None:
    """A padding token's embedding is zero, and so are all of its logits."""
    reference = np.array([[0, 0, 0], [0, 0, 0], [0, 3, -3]], dtype=np.float32)
    other = np.array([[0, 0, 0], [0, 0, 0], [0, 3, -2]], dtype=np.float32)
    assert typical_error(reference, reference) == typical_error(reference, other) == 0
    assert typical_error(reference[2:], other[2:]) > 0.1
    assert np.isnan(typical_error(reference * np.nan, other))
