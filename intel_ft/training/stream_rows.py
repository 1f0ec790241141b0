"""The rows of a stream are compared when they are read: between ranks, and with a resumed run's.

The other examples are compared before a run starts (training.run_facts), where a stream has only
its first buffer.
"""

from intel_ft.artifacts.fingerprints import hash_of
from intel_ft.batching.stream_plan import StreamPlan
from intel_ft.errors import UserError
from intel_ft.training.workload import Training

DATA = "data.train and what is done with it (data, tokenizer, template)"


def rows_fact(training: Training) -> dict[str, str]:
    """The fingerprint of the buffer that the run is in, for a checkpoint; empty without a stream.

    The key names the buffer's rows.
    """
    plan = training.data.plan
    if not isinstance(plan, StreamPlan):
        return {}
    size, first = len(plan.stream), plan.stream.number * len(plan.stream)
    name = f"streamed rows {first + 1:,} to {first + size:,}"
    return {name: hash_of(plan.stream.hashes.tobytes())}


def read_on(training: Training, index: int) -> None:
    """Read the buffer of step `index` if it is another one. All ranks call it.

    Raises EnvironmentProblem if the ranks have read other rows.
    """
    plan, world = training.data.plan, training.world
    if not isinstance(plan, StreamPlan) or plan.buffer_of(index) == plan.stream.number:
        return
    with world.raise_on_all_ranks():
        plan.stream.move_to(plan.buffer_of(index))
        read = rows_fact(training)
    world.require_same(read, dict.fromkeys(read, DATA))


def check_rows(training: Training, done: int, before: dict[str, str]) -> None:
    """Read the rows of the last one of `done` steps. All ranks call it.

    before: the checkpoint's facts. Raises UserError if it trained on other rows.
    """
    read_on(training, done - 1)
    for name, now in rows_fact(training).items():
        if before.get(name, now) != now:
            raise UserError(
                f"the checkpoint of step {done} belongs to another run: the {name} differ from "
                f"those that it trained on (fingerprint {before[name]}, now {now}): restore "
                f"{DATA}, or start again with --overwrite"
            )
