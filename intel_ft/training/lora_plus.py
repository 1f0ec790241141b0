"""LoRA+ (Hayou et al. 2024): B has a higher learning rate than A."""

from typing import Any

import torch


def scale_learning_rate_of_b(optimizer: torch.optim.Optimizer, model: Any, ratio: float) -> None:
    """Move every LoRA B of a new optimizer to groups with `ratio` times the learning rate."""
    faster = {id(weight) for name, weight in model.named_parameters() if ".lora_B." in name}
    for group in list(optimizer.param_groups):
        of_b = [weight for weight in group["params"] if id(weight) in faster]
        group["params"] = [weight for weight in group["params"] if id(weight) not in faster]
        if of_b:
            optimizer.add_param_group({**group, "params": of_b, "lr": group["lr"] * ratio})
