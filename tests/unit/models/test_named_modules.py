"""Names in method.target_modules and modules_to_save: absent ones and tied embeddings are refused.

On a model without weights, as `validate` and the start of `train` have it, and on a loaded one.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from intel_ft.config_method import MethodConfig
from intel_ft.errors import UserError
from intel_ft.models.adapter import add_lora


def model(tied, device="meta"):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    with torch.device(device):
        return (LlamaForCausalLM if device == "cpu" else AutoModelForCausalLM.from_config)(config)


def adapted(tied, device="meta", **method):
    return add_lora(model(tied, device), MethodConfig(r=2, **method), "base", None)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("key", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_tied_embeddings_are_refused_by_name(device, key, name):
    names = {key: [*(["q_proj"] if key == "target_modules" else []), name]}
    with pytest.raises(UserError) as error:
        adapted(True, device, **names)
    assert f"method.{key}: {name.rpartition('.')[2]} shares its weight" in str(error.value)
    assert "tie_word_embeddings" in str(error.value)
    adapted(False, device, **names)


def test_a_pattern_that_takes_a_tied_embedding_is_refused():
    with pytest.raises(UserError, match="lm_head shares its weight"):
        adapted(True, target_modules=r".*(q_proj|lm_head)")
    adapted(True, target_modules=r".*(q_proj|v_proj)")
    adapted(True, target_modules="all-linear")


def test_every_absent_name_is_named_with_the_nearest():
    with pytest.raises(UserError) as error:
        adapted(False, target_modules=["q_proj", "v_prj", "w1"])
    assert "no module v_prj (did you mean v_proj?), w1: " in str(error.value)
    assert "gate_proj" in str(error.value)
    adapted(False, target_modules=["q_proj", "self_attn.v_proj"])
