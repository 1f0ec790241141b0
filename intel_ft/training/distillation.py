"""The teacher of a distillation, and the loss of a student that learns from it.

At each supervised token (Hinton et al. 2015; reverse: MiniLLM, Gu et al. 2024) the loss is

    (1 - w) * cross_entropy(labels) + w * T^2 * KL

where KL is KL(teacher, student), forward, or KL(student, teacher), reverse, of both softmaxes at
temperature T. T^2 keeps the size of the gradient independent of T.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.artifacts.resolve import IR_FILE
from intel_ft.batching.row import IGNORED, Row
from intel_ft.config import Config
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.models.flops import StepCost, step_cost
from intel_ft.models.load import (
    check_folder,
    load_base,
    load_for_packing,
    load_tokenizer,
    model_folder,
)
from intel_ft.models.loss import (
    LazyLogits,
    LossOf,
    chunked_loss,
    label_loss,
    scores,
)
from intel_ft.models.model_inputs import ModelInputs, autocast, model_inputs
from intel_ft.training.ir_teacher import IRTeacher

OWN_BASE = "base"


@dataclass(frozen=True)
class Teacher:
    """What the student is compared with.

    model: a frozen model, an IR, or None if the teacher is the student without its adapter; tokens:
    size of the tokenizer's vocabulary, beyond which logits have no meaning; cost: of a step as if
    the teacher trained, or None if it is the student's.
    """

    method: MethodConfig
    model: Any
    tokens: int
    cost: StepCost | None = None

    def loss_sum(
        self, student: Any, row: Row, *, packed: bool, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The loss summed over a row's supervised tokens, a float32 scalar; see loss.loss_sum."""
        inputs = model_inputs(row, student, packed=packed)
        with autocast(dtype or student.dtype, student.device):
            teacher = self._logits(student, inputs)
            return chunked_loss(scores(student, inputs), self._loss_of(teacher, inputs))

    @torch.no_grad()
    def _logits(self, student: Any, inputs: ModelInputs) -> LazyLogits:
        if isinstance(self.model, IRTeacher):
            return self.model.scores(inputs)
        if self.model is not None:
            return scores(self.model, inputs)
        with _evaluating(student), student.disable_adapter():
            return scores(student, inputs)

    def _loss_of(self, teacher: LazyLogits, inputs: ModelInputs) -> LossOf:
        method = self.method

        def loss_of(logits: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                of_teacher = teacher.logits(rows)[:, : self.tokens].float()
            labels, weights = inputs.targets[rows], inputs.weights_of(rows)
            real = labels != IGNORED
            kl = divergence(
                logits[real, : self.tokens],
                of_teacher[real],
                method.temperature,
                method.divergence,
                None if weights is None else weights[real],
            )
            of_labels = label_loss(logits, labels, weights)
            return (1 - method.teacher_weight) * of_labels + method.teacher_weight * kl

        return loss_of


def divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    direction: str,
    weights: Tensor | None = None,
) -> Tensor:
    """T^2 KL between the softmaxes of logits [tokens, vocabulary] at temperature T, summed.

    weights: how often each token counts, [tokens]; None: once.
    """
    of_student = F.log_softmax(student / temperature, -1)
    of_teacher = F.log_softmax(teacher / temperature, -1)
    if direction == "reverse":
        of_student, of_teacher = of_teacher, of_student
    if weights is None:
        return temperature**2 * F.kl_div(of_student, of_teacher, reduction="sum", log_target=True)
    each = F.kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * (each * weights).sum()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Turn dropout off inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def check_teacher(config: Config, tokenizer: Any) -> None:
    """Check the teacher's folder without reading weights; nothing to do if it is the own base.

    Raises UserError if it is not a whole model or has a different vocabulary from the student.
    """
    if config.method.teacher in (None, OWN_BASE):
        return
    other = teacher_config(config)
    folder = model_folder(other)
    if (folder / "adapter_config.json").is_file() or (folder / "adapter").is_dir():
        raise UserError(
            f"method.teacher: {folder} is an adapter: merge it and name the merged model"
        )
    if not (folder / IR_FILE).is_file():
        check_folder(folder, other)
    elif find_spec("openvino") is None:
        raise EnvironmentProblem(
            f"method.teacher: {folder} is an OpenVINO model: pip install 'intel_ft[openvino]', or "
            "name the model that it was exported from"
        )
    teachers, students = load_tokenizer(other).get_vocab(), tokenizer.get_vocab()
    if teachers != students:
        in_order = sorted(students, key=lambda token: int(students[token]))
        token = next((token for token in in_order if teachers.get(token) != students[token]), None)
        example = f"{token!r} is {teachers.get(token)} and {students[token]}" if token else ""
        raise UserError(
            f"method.teacher: {other.name_or_path} has a different vocabulary from "
            f"{config.model.name_or_path} ({len(teachers)} and {len(students)} tokens"
            f"{'; ' * bool(token)}{example}): choose a teacher with the student's tokenizer"
        )


def teacher_config(config: Config) -> ModelConfig:
    """The teacher's model config; `trust_remote_code` and `allow_pickle` are the student's."""
    if config.method.teacher == OWN_BASE:
        return config.model.base
    update = {"name_or_path": config.method.teacher, "revision": None}
    return config.model.base.model_copy(update=update)


def load_teacher(config: Config, dtype: torch.dtype, tokens: int, *, packed: bool) -> Teacher:
    """The teacher in `dtype`, which reads rows as the student does, `packed` or not.

    A student that trains all weights has no frozen base to share, so its base is loaded again.
    Raises UserError if the student takes packed rows and the teacher cannot.
    """
    method = config.method
    if method.teacher == OWN_BASE and not method.trains_all:
        return Teacher(method, None, tokens)
    other = teacher_config(config)
    folder = model_folder(other)
    if (folder / IR_FILE).is_file():
        return Teacher(method, IRTeacher(folder), tokens, step_cost(_shape_of(folder, other)))
    if not packed:
        model = load_base(other, dtype)
        return Teacher(method, model, tokens, step_cost(model))
    model, why_not = load_for_packing(other, dtype)
    if why_not is not None:
        raise UserError(f"method.teacher: {other.name_or_path} cannot take packed rows: {why_not}")
    return Teacher(method, model, tokens, step_cost(model))


def _shape_of(folder: Path, config: ModelConfig) -> Any:
    """The model of the folder's config.json without weights, for counting its operations."""
    import transformers

    remote = config.trust_remote_code
    description = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=remote)
    with torch.device("meta"):
        shape = transformers.AutoModelForCausalLM.from_config(description, trust_remote_code=remote)
    return shape.requires_grad_(False)
