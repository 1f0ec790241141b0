"""The reference of a preference method: log-probabilities of answers before training.

They are computed once, by all ranks, for the answers that the run will see, and kept in the run's
folder, where a run that was interrupted finds them. The reference is the model as it is before its
first step, so it needs no second model, whatever is trained.
"""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from intel_ft.artifacts.fingerprints import hash_of
from intel_ft.batching.plan import IntArray, Plan, Step
from intel_ft.batching.row import build_row
from intel_ft.config_method import READS_BASE
from intel_ft.errors import UserError
from intel_ft.files import whole_file
from intel_ft.models.answer_log_probs import answer_log_probs
from intel_ft.plurals import count_of
from intel_ft.templates.answers import Judged
from intel_ft.templates.examples import Examples
from intel_ft.training.comparison import Comparison, FloatArray, Reference
from intel_ft.training.workload import Training

logger = logging.getLogger(__name__)

FILE = "reference.safetensors"
_BLOCK = 512  # answers between two exchanges
_SECONDS_BETWEEN_WRITES = 30.0
_FACTS = (
    "model.",
    "base ",
    "int4 ",
    "method.init",
    "method.student",
    "adapter",
)  # what the model is


def with_reference(
    training: Training, steps: int, run: Path | None = None, *, resumed: bool = False
) -> Training:
    """The training with the reference values that its loss needs; all ranks call it.

    steps: of the whole run; answers that it does not reach are left out (NaN). run: where values
    are kept, or None. resumed: weights of a checkpoint will follow. Raises UserError for values
    that cannot be computed again.
    """
    data = training.data
    if data.comparison is None or not data.comparison.loss.has_reference:
        return training
    reached = _reached(data.plan, steps)
    store = _Store(training, None if run is None else run / FILE)
    before = time.monotonic()
    computed = 0

    def filled(name: str, examples: Examples, wanted: IntArray) -> FloatArray:
        nonlocal computed
        values = store.read(name, examples)
        missing = wanted[np.isnan(values[wanted])]
        initialized = json.loads(training.facts.get("method.init", "null")) in READS_BASE
        if len(missing) and resumed and initialized:
            raise UserError(
                f"{store.path}: has no reference values of {count_of(len(missing), 'answer')}, and"
                " the adapter's first weights cannot be restored: start again with --overwrite"
            )
        computed += len(missing)
        _compute(training, store, name, examples, values, missing)
        return values

    def reference_of(part: str, comparison: Comparison, reached: IntArray) -> Comparison:
        _, wanted = comparison.examples.segments(reached)
        answers = filled(part, comparison.examples.answers, wanted)
        others = None
        if isinstance(comparison.examples, Judged):
            others = filled(f"{part}.others", comparison.examples.others, reached)
        return replace(comparison, reference=Reference(answers, others))

    comparison = reference_of("train", data.comparison, reached)
    validation = data.validation_comparison
    if validation is not None:
        everything = np.arange(len(validation.examples), dtype=np.int64)
        validation = reference_of("eval", validation, everything)
    if computed:
        logger.info(
            "reference: log-probabilities of %s in %.1f s",
            *(count_of(computed, "answer"), time.monotonic() - before),
        )
    data = replace(data, comparison=comparison, validation_comparison=validation)
    return replace(training, data=data)


def _reached(plan: Plan, steps: int) -> IntArray:
    """The examples of the first `steps` steps."""
    steps = min(steps, plan.steps_per_epoch)
    return np.unique(np.concatenate([step.examples for step in plan.steps(0, steps)]))


@torch.no_grad()
def _compute(
    training: Training,
    store: "_Store",
    name: str,
    examples: Examples,
    values: FloatArray,
    missing: IntArray,
) -> None:
    """Fill in the missing values, each computed by one rank."""
    data, model, world = training.data, training.model, training.world
    # Blocks end at the same answers after an interruption, so their rows and values are the same.
    shares = data.plan.shared is not None
    plan = replace(
        data.plan,
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        shared=examples if shares else None,
    )
    was_training = model.network.training
    model.network.eval()
    written = time.monotonic()
    for start in range(0, len(missing), _BLOCK):
        block = missing[start : start + _BLOCK]
        found = torch.zeros(len(examples), dtype=torch.float64)
        for indices in Step(plan, 0, block, 0).rows(world.rank, world.size):
            row = build_row(examples, indices, share=shares)
            log_probs = answer_log_probs(model.network, row, packed=data.packed, dtype=model.dtype)
            found[torch.from_numpy(indices)] = log_probs.cpu()
        part = world.all_reduce(found[torch.from_numpy(block)])
        values[block] = part.numpy()
        if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
            logger.info("reference: %s, %d of %d answers", name, start, len(missing))
            store.write(name, examples, values)
            written = time.monotonic()
    model.network.train(was_training)
    if len(missing):
        store.write(name, examples, values)


class _Store:
    """The values of all sets in one file, each with a fingerprint of what it was computed from."""

    def __init__(self, training: Training, path: Path | None) -> None:
        self.path = path
        self.world = training.world
        self.facts = json.dumps(
            {key: value for key, value in training.facts.items() if key.startswith(_FACTS)}
        ).encode()
        self.values: dict[str, FloatArray] = {}
        self.fingerprints: dict[str, str] = {}
        if path is None or self.world.rank or not path.is_file():
            return
        try:
            with safe_open(path, framework="numpy") as file:
                self.fingerprints = dict(file.metadata() or {})
                self.values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("%s cannot be read (%s): computed again", path, error)

    def read(self, name: str, examples: Examples) -> FloatArray:
        """The values of this set on all ranks; NaN for those that are not known."""
        values = np.full(len(examples), np.nan)
        stored = self.values.get(name)
        if stored is not None and self.fingerprints.get(name) == self._fingerprint(examples):
            values[:] = stored
        return self.world.broadcast(torch.from_numpy(values)).numpy()

    def write(self, name: str, examples: Examples, values: FloatArray) -> None:
        """Write all sets, with these values of one of them."""
        if self.path is None or self.world.rank:
            return
        self.values[name] = values
        self.fingerprints[name] = self._fingerprint(examples)
        with whole_file(self.path) as partial:
            save_file(self.values, partial, self.fingerprints)

    def _fingerprint(self, examples: Examples) -> str:
        return hash_of(self.facts, examples.hashes.tobytes())
