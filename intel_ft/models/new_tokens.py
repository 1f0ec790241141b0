"""Embeddings of tokens that the base does not have: rows for them, which are all that trains there.

peft keeps the rows as `trainable_token_indices` of an adapter, and copies the whole table in each
forward. `use_rows` computes with the few rows instead.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import TrainableTokensWrapper
from torch import Tensor

from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.models.targets import is_tied, matches, own_layer
from intel_ft.models.tokenizer import extended_tokenizer

logger = logging.getLogger(__name__)

_PER_LAYER = "vocab_size_per_layer_input"  # Gemma 3n and 4: embeddings in every layer


def new_token_ids(model: ModelConfig) -> list[int]:
    """The ids of model.add_tokens and model.add_special_tokens that the tokenizer did not have."""
    return sorted(extended_tokenizer(model).ids.values()) if model.new_tokens else []


def describe_tokens(model: ModelConfig) -> list[Decision]:
    """The new tokens with their ids, and those that the tokenizer had already."""
    if not model.new_tokens:
        return []
    tokens = extended_tokenizer(model)
    new, known = (
        ", ".join(f"{text!r} ({id_})" for text, id_ in ids.items())
        for ids in (tokens.ids, tokens.known)
    )
    reason = f"the tokenizer has {known} already" if known else "their embeddings are trained"
    return [Decision("new tokens", new or "none", reason)]


def warn_unseen(model: ModelConfig, ids_beyond: Callable[[int], Collection[int]]) -> None:
    """Warn of new tokens that no example has: they do not train.

    ids_beyond: gives the ids of the training data from a certain one on.
    """
    if not (new := new_token_ids(model)):
        return
    seen = ids_beyond(min(new))
    if unseen := [repr(t) for t, id_ in extended_tokenizer(model).ids.items() if id_ not in seen]:
        logger.warning(
            "new tokens that no example has, so that they stay untrained: %s%s",
            ", ".join(unseen[:5]),
            ": only a chat template writes tokens of model.add_special_tokens; words of the data"
            " belong in model.add_tokens"
            if model.add_special_tokens
            else "",
        )


@torch.no_grad()
def add_rows(model: Any, ids: Sequence[int]) -> None:
    """Give the tokens `ids` rows in both embeddings of a base model, in place.

    They start as the mean of the other rows, with which a new token is about as likely as the
    average one (Hewitt 2021). The embeddings grow to the highest id, if they do not have it. Raises
    UserError for a model whose embeddings cannot grow.
    """
    if not ids:
        return
    size = len(model.get_input_embeddings().weight)
    if max(ids) >= size:
        _resize(model, max(ids) + 1)
    spare = [id_ for id_ in ids if id_ < size]
    for weight in _tables(model):
        if weight.is_meta:
            continue
        total = weight[:size].sum(0, dtype=torch.float32)
        total -= weight[spare].sum(0, dtype=torch.float32)
        mean = (total / (size - len(spare))).to(weight.dtype)
        weight[spare] = mean
        weight[size:] = mean


def _tables(model: Any) -> list[Tensor]:
    """Weights and biases of the embeddings, [tokens] or [tokens, size]; a tied one once."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = [w for module in modules if module is not None for w in module.parameters()]
    return list(dict.fromkeys(weights))


def _resize(model: Any, rows: int) -> None:
    text = model.config.get_text_config()
    if hasattr(text, _PER_LAYER):
        raise UserError(
            f"new tokens: {text.model_type} also has embeddings in each layer, which cannot grow:"
            " use tokens that its tokenizer has"
        )
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"new tokens: the embeddings of {text.model_type} cannot grow"
            f" ({str(error).splitlines()[0]})"
        ) from None


def trained_layers(
    model: Any, ids: Sequence[int], method: MethodConfig, saved: Sequence[str]
) -> dict[str, list[int]]:
    """peft's `trainable_token_indices` for a base that has rows for `ids`.

    saved: full names of the modules that train as a whole. Raises UserError for embeddings whose
    rows peft cannot train.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [table] if head is None or is_tied(model) else [table, head]
    names = {id(module): name for name, module in model.named_modules()}
    trained: dict[str, list[int]] = {}
    for module in layers:
        name = names[id(module)]
        if not isinstance(module, torch.nn.Embedding) and type(module) is not torch.nn.Linear:
            raise UserError(
                f"model.add_tokens: {name} is a {type(module).__name__}, of which peft cannot train"
                " single rows: use tokens that the tokenizer has, or method.name=full"
            )
        if matches(method.target_modules, name):
            raise UserError(
                f"model.add_tokens: {name} cannot train single rows and have an adapter: leave it"
                " out of method.target_modules, or name it in method.modules_to_save"
            )
        if getattr(module, "bias", None) is not None:
            raise UserError(
                f"model.add_tokens: {name} has a bias, which peft drops where it trains single"
                " rows: use tokens that the tokenizer has, or method.name=full"
            )
        if name not in saved:
            trained[name] = sorted(ids)
    return trained


def require_tied(model: Any) -> None:
    """Raise UserError for a PEFT model whose head shares its weight, but not the trained rows."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    shares = head is not None and own_layer(head).weight is own_layer(table).weight
    if shares and isinstance(table, TrainableTokensWrapper) and own_layer(head) is head:
        raise UserError(
            "model.add_tokens: peft does not train the rows of this model's head, which it ties to"
            " its embeddings: use tokens that the tokenizer has, or method.name=full"
        )


def use_rows(model: Any) -> None:
    """Let a PEFT model compute with the rows that it trains, without copying a table for them."""
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper):
            layer = module.token_adapter
            of_ids = isinstance(layer.get_base_layer(), torch.nn.Embedding)
            layer.forward_adapters = MethodType(_look_up if of_ids else _project, layer)


def rows_of(layer: Any) -> tuple[Tensor, Tensor] | None:
    """The ids, int64 [n], and the rows [n, size] that `layer` trains; None while it is disabled."""
    if layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]:
        return None
    rows: Tensor = layer.trainable_tokens_delta["default"]
    return torch.tensor(layer.token_indices["default"], device=rows.device), rows


def _look_up(self: Any, x: Tensor, active: Any, *arguments: Any, **options: Any) -> Tensor:
    """The embeddings of the ids `x`, those of new tokens from the trained rows."""
    out: Tensor
    if (trained := rows_of(self)) is None:
        out = TrainableTokensLayer.forward_adapters(self, x, active, *arguments, **options)
        return out
    ids, order = trained[0].sort()
    nearest = torch.searchsorted(ids, x).clamp_(max=len(ids) - 1)
    rows = F.embedding(order[nearest], trained[1])
    out = self.base_layer(x, *arguments, **options)
    if (scale := self._get_embed_scale()) is not None:
        rows = rows * scale.to(rows.dtype)
    return torch.where((ids[nearest] == x)[..., None], rows.to(out.dtype), out)


def _project(self: Any, x: Tensor, active: Any, *arguments: Any, **options: Any) -> Tensor:
    """The logits of hidden states `x`, those of new tokens from the trained rows."""
    out: Tensor
    if (trained := rows_of(self)) is None:
        out = TrainableTokensLayer.forward_adapters(self, x, active, *arguments, **options)
        return out
    ids, rows = trained
    out = self.base_layer(x, *arguments, **options)
    return out.index_copy(-1, ids, F.linear(x, rows.to(x.dtype)).to(out.dtype))
