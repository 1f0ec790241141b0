"""`plan --sweep`: the plan over numbers of nodes, numbers of threads, or row lengths."""

from dataclasses import replace
from typing import Any

from intel_ft.bench.sweep_values import whole_numbers
from intel_ft.errors import UserError
from intel_ft.planner.fit import ROWS
from intel_ft.planner.inputs import PlanInputs
from intel_ft.planner.plan import plan
from intel_ft.plot import line_plot


def values_of(inputs: PlanInputs, over: str, text: str | None) -> list[int]:
    """The values in `text` (comma-separated), sorted and unique, or the defaults of `over`.

    Raises UserError for values that are not positive whole numbers.
    """
    if text is None:
        cores = inputs.machine.cores // inputs.cluster.ranks
        powers = [2**n for n in range(cores.bit_length())]
        longest = inputs.config.data.max_length
        rows = [row for row in ROWS if row >= longest]
        return {"nodes": [1, 2, 4, 8, 16], "threads": powers, "row-tokens": rows}[over]
    return whole_numbers(text, "1,2,4")


def swept(inputs: PlanInputs, over: str, values: list[int]) -> list[dict[str, Any]]:
    """The plan at each value, with the value itself under the key `value`."""
    return [{"value": value, **plan(_at(inputs, over, value))} for value in values]


def _at(inputs: PlanInputs, over: str, value: int) -> PlanInputs:
    if over == "nodes":
        return replace(inputs, cluster=replace(inputs.cluster, nodes=value))
    config = inputs.config
    if over == "threads":
        if inputs.machine.gpu_memory is not None:
            raise UserError("--sweep threads applies to CPUs only")
        backend = config.backend.model_copy(update={"threads": value})
        return replace(inputs, config=config.model_copy(update={"backend": backend}))
    train = config.train.model_copy(update={"max_tokens_per_row": value})
    return replace(inputs, config=config.model_copy(update={"train": train}))


def plotted(points: list[dict[str, Any]], over: str) -> str:
    """Token/s and memory per rank over the values, as an SVG plot."""
    name = over.replace("-", " ")
    return line_plot(
        f"predicted: token/s and memory over {name}",
        name,
        [point["value"] for point in points],
        {
            "token/s": [point["step"]["tokens_per_s"] for point in points],
            "GiB per rank": [point["memory"]["total"] for point in points],
        },
    )
