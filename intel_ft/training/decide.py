"""What a run decides about its rows and steps, as pure functions that `plan` calls too."""

import numpy as np
import numpy.typing as npt

from intel_ft.batching.plan import IntArray, Plan, Step
from intel_ft.config import Config
from intel_ft.config_sections import TrainConfig
from intel_ft.data.mixture import Part
from intel_ft.data.prompts import answers_together
from intel_ft.decisions import Decision
from intel_ft.models.flops import StepCost
from intel_ft.templates.examples import ExampleSet

FloatArray = npt.NDArray[np.float32]

_SAMPLED_STEPS = 24


def row_capacity(config: Config) -> Decision:
    """Tokens that a packed row may hold: enough for GEMMs at full rate, and for any example."""
    chosen = config.train.max_tokens_per_row
    if isinstance(chosen, int):
        return Decision("train.max_tokens_per_row", str(chosen), "set in the config")
    if config.method.compares == "pairs":
        tokens, reason = (
            max(2048, 2 * config.data.max_length),
            "2048, or a pair of answers if longer",
        )
    else:
        tokens, reason = max(2048, config.data.max_length), "2048, or data.max_length if longer"
    return Decision("train.max_tokens_per_row", str(tokens), reason)


def make_plan(
    config: Config,
    lengths: IntArray,
    supervised: IntArray,
    cost: StepCost,
    *,
    packed: bool,
    parts: tuple[Part, ...] = (),
    shared: ExampleSet | None = None,
    weights: FloatArray | None = None,
    examples: ExampleSet | None = None,
) -> Plan:
    """The run's plan over examples of these tokens and supervised tokens. Raises UserError.

    parts: what an epoch takes from each source, where sources have weights; shared, weights: see
    Plan; examples: those whose answers to one prompt are kept together, if the config does that.
    """
    together = None
    if config.train.keep_answers_together and examples is not None:
        together = answers_together(examples)
    return Plan(
        lengths=lengths,
        supervised=supervised,
        global_batch_size=config.train.global_batch_size,
        max_tokens_per_row=int(row_capacity(config).value),
        seed=config.train.seed,
        quadratic_cost=cost.quadratic_cost,
        one_example_a_row=not packed,
        parts=parts,
        shared=shared,
        weights=weights,
        together=together,
    )


def total_steps(settings: TrainConfig, plan: Plan) -> int:
    """Optimizer steps of the whole run."""
    return settings.max_steps or max(1, round(settings.epochs * plan.steps_per_epoch))


def sampled_steps(plan: Plan, steps: int) -> list[Step]:
    """Some of the first `steps` steps, evenly spread, to estimate memory and time from."""
    chosen = np.unique(np.linspace(0, steps - 1, _SAMPLED_STEPS).astype(int))
    return [plan.step(index) for index in chosen.tolist()]
