"""The section `method` of the configuration: what is trained, and on which target."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from intel_ft.config_sources import PathOrId, Section
from intel_ft.config_text import names_or_pattern

OF_LOSSES = {
    "gamma": ("simpo",),
    "label_smoothing": ("dpo", "simpo", "cpo"),
    "sft_weight": ("dpo", "ipo", "simpo", "cpo"),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Keys of a preference method that only some losses have."""


CHANGES_BASE = ("pissa", "olora")
"""Values of `init` that subtract what LoRA starts as from the base's weights."""
READS_BASE = (*CHANGES_BASE, "loftq")
"""Values of `init` that compute what LoRA starts as from the base's weights."""
WITH_STUDENT = ("distill", "preference", "reward")
"""Methods that train an adapter or all weights, as method.student says."""


class MethodConfig(Section):
    """What is trained (an adapter or all weights), and on which target (labels or a teacher)."""

    name: Literal["lora", "qlora", "full", "distill", "preference", "reward"] = "lora"
    """Training method. qlora is LoRA on a 4-bit base; full trains all weights; preference compares
    answers; reward trains a model that scores them."""
    r: int = Field(16, ge=1, le=1024)
    """Rank of the adapter. Memory and time grow with it."""
    alpha: float = Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target_modules: Annotated[str | list[str], AfterValidator(names_or_pattern)] = "all-linear"
    """Layers that get an adapter: all-linear (with experts), attention-only, a list of names, or a
    regular expression."""
    modules_to_save: list[str] = []
    """Modules that are trained in full alongside the adapter and saved with it."""
    use_dora: bool = False
    """Use DoRA (weight-decomposed LoRA)."""
    use_rslora: bool = False
    """Use rank-stabilized LoRA: scale by alpha / sqrt(r)."""
    init: Literal["default", "gaussian", "pissa", "olora", "loftq"] = "default"
    """Initialization of the adapter. loftq: from the rounding error of model.base_dtype=int4."""
    lora_plus_ratio: float = Field(1.0, ge=1.0)
    """LoRA+: learning rate of the B matrices divided by that of the A matrices."""
    teacher: PathOrId | None = None
    """Distillation: the teacher model, or "base" for the student's own base model."""
    student: Literal["lora", "full"] = "lora"
    """Distillation, preference and reward: train an adapter or all weights."""
    divergence: Literal["forward", "reverse"] = "forward"
    """Distillation: KL(teacher, student), or KL(student, teacher) if reverse."""
    temperature: float = Field(2.0, gt=0, le=100)
    """Distillation: softmax temperature of teacher and student."""
    teacher_weight: float = Field(0.5, gt=0.0, le=1.0)
    """Distillation: weight of the teacher's term; that of the labels is 1 minus this."""
    loss: Literal["dpo", "ipo", "simpo", "orpo", "cpo", "kto"] = "dpo"
    """Preference: the loss. kto takes single answers, the others pairs; simpo, orpo and cpo have no
    reference model."""
    beta: float | None = Field(None, gt=0)
    """Preference: scale of the rewards, and weight of orpo's odds ratio; null: 2 for simpo, 0.1 for
    the others."""
    gamma: float | None = Field(None, ge=0)
    """Preference: target reward margin of simpo; null: half of beta."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Preference: assumed share of pairs whose answers are swapped (dpo, simpo, cpo)."""
    sft_weight: float | None = Field(None, ge=0)
    """Preference: weight of the chosen answer's mean cross-entropy, added to the loss; null: 1 for
    cpo, 0 for the others."""
    desirable_weight: float = Field(1.0, gt=0)
    """Preference: weight of good answers in kto."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Preference: weight of bad answers in kto."""

    @property
    def trains_all(self) -> bool:
        """Whether all weights are trained, instead of an adapter on frozen ones."""
        return self.name == "full" or (self.name in WITH_STUDENT and self.student == "full")

    @property
    def compares(self) -> Literal["pairs", "judged"] | None:
        """What an example is: a pair of answers, a judged answer, or None for an answer alone."""
        if self.name == "reward":
            return "pairs"
        if self.name != "preference":
            return None
        return "judged" if self.loss == "kto" else "pairs"

    @model_validator(mode="after")
    def _fits_together(self) -> "MethodConfig":
        distillation = ("teacher", "divergence", "temperature", "teacher_weight")
        adapter = [
            *("r", "alpha", "dropout", "target_modules", "modules_to_save"),
            *("use_dora", "use_rslora", "init", "lora_plus_ratio"),
        ]
        if self.trains_all and (name := self.first_changed(adapter)):
            raise ValueError(f"{name} configures an adapter, but all weights are trained here")
        if self.name != "distill" and (name := self.first_changed(distillation)):
            raise ValueError(f"{name} requires name=distill, but name is {self.name}")
        if self.name not in WITH_STUDENT and self.student != "lora":
            raise ValueError(f"student requires name={' or '.join(WITH_STUDENT)}, not {self.name}")
        for conflict in _preference_conflicts(self):
            raise ValueError(conflict)
        if self.name == "distill" and self.teacher is None:
            raise ValueError(
                "name=distill needs a teacher: set teacher to a model, or to base for the student's"
                " own base model"
            )
        if self.init in CHANGES_BASE:
            if self.use_dora:
                raise ValueError(f"init={self.init} cannot be combined with use_dora")
            if self.teacher == "base":
                raise ValueError(
                    f"init={self.init} changes the base weights, so teacher=base cannot be used:"
                    " set teacher to the path of the base model"
                )
        return self

    def first_changed(self, names: Iterable[str]) -> str | None:
        """The first of these fields that differs from its default."""
        fields = type(self).model_fields
        return next((n for n in names if getattr(self, n) != fields[n].default), None)


def _preference_conflicts(method: MethodConfig) -> Iterator[str]:
    """Keys of `method` that its name or its preference loss does not have, one sentence each."""
    if method.name != "preference":
        if name := method.first_changed(("loss", "beta", *OF_LOSSES)):
            yield f"{name} requires name=preference, but name is {method.name}"
        return
    for key, losses in OF_LOSSES.items():
        if method.loss not in losses and method.first_changed([key]):
            yield f"{key} is for loss={' or '.join(losses)}, but loss is {method.loss}"
