"""What a training consists of: its data, its model, and the meter of its speed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from intel_ft.backends.cpu import Optimize
from intel_ft.batching.plan import IntArray, Plan
from intel_ft.batching.row import Row, build_row
from intel_ft.distributed.world import World
from intel_ft.host.devices import CPU
from intel_ft.models.loss import loss_sum
from intel_ft.models.routing import Routing
from intel_ft.templates.examples import ExampleSet
from intel_ft.training.comparison import Comparison
from intel_ft.training.distillation import Teacher
from intel_ft.training.meter import Meter
from intel_ft.training.sharding import Shards
from intel_ft.training.trainable import TrainedWeights


@dataclass(frozen=True)
class TrainingData:
    """The plan over the training examples, and the validation set.

    packed: rows hold several examples, which the model's attention keeps apart. comparison: for a
    preference method, how the examples of a set are compared.
    """

    plan: Plan
    examples: ExampleSet
    validation: ExampleSet | None = None
    packed: bool = True
    comparison: Comparison | None = None
    validation_comparison: Comparison | None = None

    def row(self, examples: ExampleSet, indices: IntArray) -> Row:
        """The row of these examples, with common beginnings once where the plan counts on that."""
        return build_row(examples, indices, share=self.plan.shared is not None)


@dataclass(frozen=True)
class TrainingModel:
    """The model, which of its weights train, and how it computes.

    dtype: of GEMMs; teacher: of a distillation; optimize: see backends.cpu.Backend; shards: with
    backend.shard, how the weights are shared by the ranks.
    """

    weights: TrainedWeights
    dtype: torch.dtype
    device: torch.device = CPU
    teacher: Teacher | None = None
    optimize: Optimize | None = None
    shards: Shards | None = None

    @property
    def network(self) -> Any:
        """The whole model, frozen weights included."""
        return self.weights.model

    def trained_parameters(self) -> list[Tensor]:
        """The parameters that train, always in the same order."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def compute(self, function: Callable[[], Tensor]) -> Tensor:
        """The function's result, which may be of any part of the network."""
        return function() if self.shards is None else self.shards.compute(function)

    def loss_sum(self, row: Row, *, packed: bool) -> Tensor:
        """The training loss summed over a row's supervised tokens, a float32 scalar."""
        if self.teacher is not None:
            return self.teacher.loss_sum(self.network, row, packed=packed, dtype=self.dtype)
        return loss_sum(self.network, row, packed=packed, dtype=self.dtype)


@dataclass(frozen=True)
class Training:
    """Everything that the training step works with; `world` is all ranks, seen from this one.

    facts: what the run's meaning depends on (training.run_facts), kept in its checkpoints; routing:
    what is watched of a mixture of experts, or None.
    """

    data: TrainingData
    model: TrainingModel
    meter: Meter
    world: World
    facts: dict[str, str] = field(default_factory=dict)
    routing: Routing | None = None


def with_whole_weights(training: Training) -> Training:
    """The training with whole weights on rank 0, to be saved; all ranks call it."""
    model = training.model
    if model.shards is None:
        return training
    sharded: Any = model.weights
    weights = replace(sharded, model=model.shards.gathered())
    return replace(training, model=replace(model, weights=weights, shards=None))
