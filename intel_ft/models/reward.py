"""Reward models: a decoder whose last hidden state gives one score, a text's reward.

Such a model is the sequence classifier that Transformers has for the base's family, with one label.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from intel_ft.batching.row import Row, segments_of
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.models.load import check_complete, check_folder, model_folder, unloadable
from intel_ft.models.loss import hidden_states
from intel_ft.models.model_inputs import autocast, model_inputs
from intel_ft.models.targets import output_layer

_SCORE = "score"  # the head's name in all families of decoders


def with_score(model: Any, seed: int = 0) -> Any:
    """The reward model around the decoder of a causal language model, which loses its head.

    The score head, [1, hidden], is drawn from `seed` as Transformers initializes it; `model` may be
    on torch's `meta` device. Raises UserError for a family without such a classifier.
    """
    family = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model.config), None)
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.pad_token_id = None  # the score is that of the last token, whichever it is
    prefix: str = model.base_model_prefix
    scorer: Any = None
    if family is not None and family.base_model_prefix == prefix:
        with torch.device("meta"):
            scorer = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    decoder = getattr(model, prefix)
    if (
        scorer is None
        or type(getattr(scorer, prefix)) is not type(decoder)
        or not _is_score(getattr(scorer, _SCORE, None))
    ):
        raise UserError(
            f"method.name=reward: Transformers has no sequence classifier with the decoder of "
            f"model_type {model.config.model_type!r}: use a base of another family"
        )
    text = model.config.get_text_config()
    score = torch.nn.Linear(text.hidden_size, 1, bias=False, dtype=model.dtype, device="meta")
    if model.device.type != "meta":
        score.to_empty(device=model.device)
        values = torch.empty(score.weight.shape)
        std = getattr(text, "initializer_range", 0.02)
        values.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            score.weight.copy_(values)
    setattr(scorer, prefix, decoder)
    setattr(scorer, _SCORE, score.requires_grad_(False))
    return scorer.train(model.training)


def _is_score(head: Any) -> bool:
    return type(head) is torch.nn.Linear and head.out_features == 1 and head.bias is None


def load_reward_model(model: ModelConfig, dtype: torch.dtype) -> Any:
    """The reward model in a folder, with all of its weights, frozen and in eval mode.

    Raises UserError for a folder that `check_folder` refuses.
    """
    folder = model_folder(model)
    check_folder(folder, model, scores=True)
    try:
        loaded, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, KeyError) as error:
        raise unloadable(folder, error) from None
    check_complete(folder, info)
    if not _is_score(getattr(loaded, _SCORE, None)):
        raise UserError(f"{folder}: this classifier has {loaded.config.num_labels} labels, not one")
    return loaded.eval().requires_grad_(False)


def answer_scores(
    model: Any, row: Row, *, packed: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """The score at the last token of each segment, float64 [segments].

    packed, dtype: as for `answer_log_probs`. The head multiplies in float32.
    """
    if not packed and len(row.bounds) != 2:
        parts = segments_of(row)
        return torch.cat([answer_scores(model, p, packed=packed, dtype=dtype) for p in parts])
    last = row.bounds[1:] - 1
    row = replace(row, predict=last, targets=row.tokens[last])
    inputs = model_inputs(row, model, packed=packed)
    with autocast(dtype or model.dtype, model.device):
        hidden = hidden_states(model, inputs)[: len(last)]
    weight: Tensor = output_layer(model).weight
    return (hidden.float() @ weight.float().T)[:, 0].double()
