"""`plan --sweep`: the same run on more nodes, with more threads or in longer rows; called from
cli.plan.
"""

from dataclasses import replace
from typing import Any

from intel_ft.bench.sweep_values import whole_numbers
from intel_ft.errors import UserError
from intel_ft.planner.fit import ROWS
from intel_ft.planner.inputs import Inputs
from intel_ft.planner.plan import plan
from intel_ft.plot import line_plot


def values_of(inputs: Inputs, over: str, text: str | None) -> list[int]:
    """The values in `text` (comma-separated, sorted, each once), or the default ones of `over`.

    Raises UserError for what is no whole number above 0.
    """
    if text is None:
        cores = inputs.machine.cores // inputs.cluster.ranks
        powers = [2**n for n in range(cores.bit_length())]
        longest = inputs.config.data.max_length
        rows = [row for row in ROWS if row >= longest]
        return {"nodes": [1, 2, 4, 8, 16], "threads": powers, "row-tokens": rows}[over]
    return whole_numbers(text, "1,2,4")


def swept(inputs: Inputs, over: str, values: list[int]) -> list[dict[str, Any]]:
    """The plan at each value, with that under `value`."""
    return [{"value": value, **plan(_at(inputs, over, value))} for value in values]


def _at(inputs: Inputs, over: str, value: int) -> Inputs:
    if over == "nodes":
        return replace(inputs, cluster=replace(inputs.cluster, nodes=value))
    config = inputs.config
    if over == "threads":
        if inputs.machine.gpu_memory is not None:
            raise UserError("--sweep threads: for CPUs")
        backend = config.backend.model_copy(update={"threads": value})
        return replace(inputs, config=config.model_copy(update={"backend": backend}))
    train = config.train.model_copy(update={"max_tokens_per_row": value})
    return replace(inputs, config=config.model_copy(update={"train": train}))


def plotted(points: list[dict[str, Any]], over: str) -> str:
    """Token/s and a rank's memory over the values, as SVG."""
    name = over.replace("-", " ")
    return line_plot(
        f"predicted: token/s and memory over {name}",
        name,
        [point["value"] for point in points],
        {
            "token/s": [point["step"]["tokens_per_s"] for point in points],
            "GiB a rank": [point["memory"]["total"] for point in points],
        },
    )
