"""What a method trains, an adapter or the whole model: in checkpoints and as the run's result."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from intel_ft.artifacts.model_folder import save_whole
from intel_ft.errors import UserError
from intel_ft.models.adapter import adapter_weights, load_weights, restore_weights, save_adapter
from intel_ft.models.lora_init import (
    CONFIG,
    Initial,
    config_for_original,
    load_from_original,
    save_for_original,
)

_ADAPTER = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "target_parameters",
    "modules_to_save",
    "use_dora",
    "use_rslora",
    "trainable_token_indices",
)
_ALL = "weights.safetensors"


class TrainedWeights(Protocol):
    """The weights of `model` that a method trains."""

    @property
    def model(self) -> Any:
        """The whole model, frozen weights included."""
        ...

    @property
    def folder(self) -> str:
        """Name of the result in the run's folder."""
        ...

    @property
    def kind(self) -> str:
        """The `kind` in its intel_ft.json."""
        ...

    def save(self, folder: Path) -> None:
        """Write the exact weights into a checkpoint."""
        ...

    def load(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint, in place."""
        ...

    def describe(self, folder: Path) -> None:
        """Write what `check` reads into a checkpoint whose weights are sharded."""
        ...

    def check(self, checkpoint: Path) -> None:
        """Raise UserError if the checkpoint has other weights than these."""
        ...

    def save_result(self, folder: Path, tokenizer: Any, base_model: str, base: Path) -> None:
        """Write the files that eval, merge and export open; the caller saves the tokenizer.

        base_model: the base's id; base: its folder.
        """
        ...


@dataclass(frozen=True)
class Adapter:
    """A PEFT model's adapter; `initial` was subtracted from the base, and is saved with it."""

    model: Any
    initial: Initial = field(default_factory=dict)
    folder: str = "adapter"
    kind: str = "adapter"

    def save(self, folder: Path) -> None:
        """See TrainedWeights."""
        save_adapter(self.model, folder)
        if self.initial:
            save_for_original(folder, self.initial)

    def load(self, checkpoint: Path) -> None:
        """See TrainedWeights."""
        if self.initial:
            rank = self.model.peft_config["default"].r
            set_peft_model_state_dict(self.model, load_from_original(checkpoint, rank)[0])
        else:
            load_weights(self.model, checkpoint)

    def describe(self, folder: Path) -> None:
        """See TrainedWeights."""
        self.model.peft_config["default"].save_pretrained(folder)

    def check(self, checkpoint: Path) -> None:
        """See TrainedWeights."""
        current = vars(self.model.peft_config["default"])
        if self.initial:
            names = {n for n, m in self.model.named_modules() if isinstance(m, LoraLayer)}
            current = current | config_for_original(current, self.initial, names)
        stored = json.loads((checkpoint / CONFIG).read_text(encoding="utf-8"))
        for name in _ADAPTER:
            before, now = (
                sorted(value) if isinstance(value, list | set) else value
                for value in (stored.get(name), current[name])
            )
            if before != now:
                raise UserError(
                    f"{checkpoint}: its adapter has {name}={before}, the config has {now}: restore "
                    "the method section of the config, or start again with --overwrite"
                )

    def save_result(self, folder: Path, tokenizer: Any, base_model: str, base: Path) -> None:
        """See TrainedWeights."""
        self.save(folder)


@dataclass(frozen=True)
class WholeModel:
    """All weights of a model: float32 while they train, bf16 in the result."""

    model: Any
    folder: str = "model"
    kind: str = "merged"

    def save(self, folder: Path) -> None:
        """See TrainedWeights."""
        save_file(adapter_weights(self.model), folder / _ALL)

    def load(self, checkpoint: Path) -> None:
        """See TrainedWeights."""
        restore_weights(self.model, load_file(checkpoint / _ALL))

    def describe(self, folder: Path) -> None:
        """See TrainedWeights."""

    def check(self, checkpoint: Path) -> None:
        """See TrainedWeights."""

    def save_result(self, folder: Path, tokenizer: Any, base_model: str, base: Path) -> None:
        """See TrainedWeights. The model is in bf16 afterwards."""
        save_whole(self.model.to(torch.bfloat16), tokenizer, folder, base_model, base)
