"""Whether a run computes beginnings that its examples have in common once, and what that saves."""

from typing import Any

import torch

from intel_ft.artifacts.resolve import IR_FILE
from intel_ft.batching.plan import Plan
from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.kernels.ops import why_no_chains
from intel_ft.layers.packed_attention import why_not_shareable
from intel_ft.models.load import model_folder
from intel_ft.training.decide import sampled_steps
from intel_ft.training.distillation import OWN_BASE, teacher_config

NAME = "train.share_prefixes"


def why_not_shared(config: Config, description: Any, *, packed: bool) -> str | None:
    """Why they are computed in each example, as far as is known without weights; None if not.

    description: the model's configuration; packed: whether rows hold several examples.
    """
    if not config.train.share_prefixes:
        return "set in the config"
    if not packed:
        return "each row has one example"
    text, auxiliary = description.get_text_config(), config.train.router_aux_loss
    if auxiliary == "auto":
        auxiliary = getattr(text, "output_router_logits", False)
    if auxiliary and getattr(text, "router_aux_loss_coef", None):
        return "the routers' auxiliary loss counts the tokens of every example"
    if config.method.name == "reward":
        return "a reward model reads the last token of each answer"
    teacher = config.method.teacher
    if teacher in (None, OWN_BASE):
        return None
    is_ir = (model_folder(teacher_config(config)) / IR_FILE).is_file()
    return "the teacher is an OpenVINO model, which reads one example at a time" if is_ir else None


def share_decision(config: Config, base: Any, device: torch.device, *, packed: bool) -> Decision:
    """Whether they are computed once: tried with `base`, and with attention on `device`."""
    why_not = (
        why_not_shared(config, base.config, packed=packed)
        or why_not_shareable(base)
        or why_no_chains(device)
    )
    if why_not is not None:
        return Decision(NAME, "off", why_not)
    return Decision(NAME, "on", "checked: this model can compute a shared prefix once")


def shared_prefix_share(plan: Plan, steps: int, ranks: int = 1) -> float:
    """The share of the examples' tokens that sampled steps do not compute again."""
    tokens = saved = 0
    for step in sampled_steps(plan, steps):
        tokens += int(plan.lengths[step.examples].sum())
        saved += sum(plan.saved(row) for part in step.shares(ranks) for row in plan.rows(part))
    return saved / max(1, tokens)
