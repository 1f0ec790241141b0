"""The plan of a stream: that of the buffer which a step belongs to."""

from dataclasses import dataclass, field, fields

from intel_ft.batching.plan import Plan, Step
from intel_ft.data.prompts import answers_together
from intel_ft.data.stream import Stream


@dataclass(frozen=True, eq=False)
class StreamPlan(Plan):
    """The steps of a run over a stream. An epoch is a buffer, whose examples come once.

    lengths, supervised: those of the first buffer, which stand for all in estimates.
    keeps_together: whether answers to one prompt follow each other.
    """

    stream: Stream = field(kw_only=True)
    keeps_together: bool = field(kw_only=True)
    _plans: dict[int, Plan] = field(default_factory=dict, init=False)

    def buffer_of(self, index: int) -> int:
        """The number of the buffer that step `index` belongs to."""
        return index // self.steps_per_epoch

    def step(self, index: int) -> Step:
        """See Plan; the stream then holds the step's examples."""
        number = self.buffer_of(index)
        self.stream.move_to(number)
        if number not in self._plans:
            self._plans.clear()
            self._plans[number] = Plan(
                self.stream.lengths,
                self.stream.supervised_counts,
                self.global_batch_size,
                self.max_tokens_per_row,
                self.seed,
                self.quadratic_cost,
                self.one_example_a_row,
                shared=None if self.shared is None else self.stream,
                together=answers_together(self.stream) if self.keeps_together else None,
            )
        return self._plans[number].step(index)


def plan_of_stream(plan: Plan, stream: Stream, *, keeps_together: bool) -> StreamPlan:
    """The plan over all buffers, from the one over the first."""
    values = {one.name: getattr(plan, one.name) for one in fields(plan) if one.init}
    return StreamPlan(**values, stream=stream, keeps_together=keeps_together)
