"""The YAML configuration: its fields, their bounds, and how a file and overrides become one.

Called from cli; every other package receives the finished `Config` or one of its sections.
"""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from intel_ft.errors import UserError

Auto = Literal["auto"]
DataFormat = Literal[
    "auto", "alpaca", "dolly", "prompt_completion", "question_answer", "messages", "text"
]
TemplateName = Literal["auto", "llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"]

_AS_THEY_ARE = (
    "needs the base's weights as they are: no qlora, no model.base_dtype, no backend.prepack=true"
)


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Section):
    """Which base model, and how far to trust its files."""

    name_or_path: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # float16 is for GPUs
    # Of the frozen weights. auto: nf4 where method.name is qlora, else model.dtype.
    base_dtype: Literal["auto", "int8", "nf4"] = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False


class DataConfig(Section):
    """Where the examples come from and how they become tokens with a loss mask."""

    train: str = Field(min_length=1)
    eval: str | None = None
    split: str = "train"
    eval_split: str | None = None  # of data.eval; None is the same as split
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    format: DataFormat = "auto"
    template: TemplateName = "auto"
    system_prompt: str | None = None
    max_length: int = Field(1024, ge=8)
    on_long: Literal["error", "drop", "truncate"] = "error"
    loss_on: Literal["completion", "all"] = "completion"


class MethodConfig(Section):
    """What is trained, and towards what: an adapter or all weights, labels or a teacher."""

    name: Literal["lora", "qlora", "full", "distill"] = "lora"
    r: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    modules_to_save: list[str] = []  # trained whole beside the adapter, and saved with it
    use_dora: bool = False
    use_rslora: bool = False
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    lora_plus_ratio: float = Field(1.0, ge=1.0)  # B's learning rate over A's
    teacher: str | None = None  # a model, or "base": the student's own before tuning
    student: Literal["lora", "full"] = "lora"
    divergence: Literal["forward", "reverse"] = "forward"  # KL(teacher, student) or the other way
    temperature: float = Field(2.0, gt=0, le=100)
    teacher_weight: float = Field(0.5, gt=0.0, le=1.0)  # the rest is the labels'

    @property
    def trains_all(self) -> bool:
        """Whether all weights are trained; else an adapter on frozen ones."""
        return self.name == "full" or (self.name == "distill" and self.student == "full")

    @model_validator(mode="after")
    def _fits_together(self) -> "MethodConfig":
        distilling = ("teacher", "student", "divergence", "temperature", "teacher_weight")
        adapter = [n for n in type(self).model_fields if n not in ("name", *distilling)]
        if self.trains_all and (name := self._changed(adapter)):
            raise ValueError(f"{name} is an adapter's, and all weights are trained here")
        if self.name != "distill" and (name := self._changed(distilling)):
            raise ValueError(f"{name} is for name=distill, and name is {self.name} here")
        if self.name == "distill" and self.teacher is None:
            raise ValueError("name=distill needs a teacher: a model, or base for the student's own")
        if self.init in ("pissa", "olora"):
            if self.use_dora:
                raise ValueError(f"init={self.init} and use_dora exclude each other")
            if self.teacher == "base":
                raise ValueError(
                    f"init={self.init} changes the base: name that by its path as the teacher"
                )
        return self

    def _changed(self, names: Iterable[str]) -> str | None:
        """The first of these fields that is not at its default."""
        fields = type(self).model_fields
        return next((n for n in names if getattr(self, n) != fields[n].default), None)


class TrainConfig(Section):
    """The steps: how many, how large, how fast, and when to save and evaluate."""

    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    global_batch_size: int = Field(16, ge=1)
    max_tokens_per_row: int | Auto = "auto"
    learning_rate: float = Field(2e-4, gt=0, le=10)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0.0, le=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    max_grad_norm: float = Field(1.0, gt=0)
    # paged: states leave a full GPU for main memory; on a CPU the same as adamw_torch_fused.
    optimizer: Literal[
        "adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "sgd", "adafactor"
    ] = "adamw_torch_fused"
    seed: int = Field(42, ge=0, lt=2**32)
    eval_steps: int | None = Field(None, ge=1)
    save_steps: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    logging_steps: int = Field(1, ge=1)
    early_stopping: int | None = Field(None, ge=1)
    activation_checkpointing: bool = False
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]
    callbacks: list[str] = []  # a user's own, each as module:Class

    @model_validator(mode="after")
    def _row_is_a_length(self) -> "TrainConfig":
        if isinstance(self.max_tokens_per_row, int) and self.max_tokens_per_row < 8:
            raise ValueError("max_tokens_per_row must be at least 8")
        return self


class BackendConfig(Section):
    """What runs it. Threads `auto` means the cores this process may use."""

    # auto is never ipex, which is archived
    name: Literal["auto", "cpu", "cuda", "ipex"] = "auto"
    threads: int | Auto = "auto"
    # how ranks exchange gradients; nccl is for backend.name=cuda, the others for cpu
    collective: Literal["auto", "ccl", "mpi", "gloo", "nccl"] = "auto"
    timeout: int = Field(1800, ge=1)  # seconds that a rank waits for the others in an exchange
    heartbeat_timeout: int = Field(60, ge=1)  # seconds without a sign of life of a rank
    bind: Literal["auto", "none"] = "auto"  # ranks of one host to cores and memory of their own
    prepack: bool | Auto = "auto"  # frozen bf16 weights in oneDNN's layouts, twice the memory
    compile: bool | Auto = "auto"  # the model's own layers by torch.compile, in place of ours


class OutputConfig(Section):
    """Where the run's folder goes."""

    directory: Path


class Config(Section):
    """One run, whole: what `config.yaml` in a run's folder holds."""

    model: ModelConfig
    data: DataConfig
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()
    backend: BackendConfig = BackendConfig()
    output: OutputConfig

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for sentence in _conflicts(self):
            raise ValueError(sentence)
        return self

    @property
    def base_dtype(self) -> Literal["auto", "int8", "nf4"]:
        """Of the frozen weights; auto is model.dtype."""
        chosen = self.model.base_dtype
        return "nf4" if chosen == "auto" and self.method.name == "qlora" else chosen

    def to_yaml(self) -> str:
        """The configuration as YAML that `load` reads back to an equal value."""
        values = self.model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        # PyYAML writes U+0085 and other separators as they are, and reads them as line breaks.
        return text if yaml.safe_load(text) == values else yaml.safe_dump(values, sort_keys=False)


def _conflicts(config: Config) -> Iterator[str]:
    """What does not go together in `config`, a sentence each."""
    method, backend, train = config.method, config.backend, config.train
    row, longest = train.max_tokens_per_row, config.data.max_length
    if isinstance(row, int) and row < longest:
        yield f"train.max_tokens_per_row ({row}) must be at least data.max_length ({longest})"
    if train.early_stopping and not (config.data.eval or config.data.eval_fraction):
        yield "train.early_stopping needs data.eval or data.eval_fraction"
    prepack = backend.prepack is True
    laid_out = config.base_dtype != "auto" or prepack
    if method.trains_all and (config.model.base_dtype != "auto" or prepack):
        key = "backend.prepack" if prepack else "model.base_dtype"
        yield f"{key} is for frozen weights, and all weights are trained here"
    if method.use_dora and laid_out:
        yield f"method.use_dora {_AS_THEY_ARE}"
    if backend.compile is True and laid_out:
        yield f"backend.compile=true {_AS_THEY_ARE}"
    if backend.name == "cpu" and backend.collective == "nccl":
        yield "backend.collective=nccl is for backend.name=cuda"
    if backend.name == "cuda":
        yield from _on_cuda(config)
    if backend.name == "ipex":
        yield from _on_ipex(config)


def _on_cuda(config: Config) -> Iterator[str]:
    backend = config.backend
    if backend.collective not in ("auto", "nccl"):
        yield f"backend.collective={backend.collective} is for backend.name=cpu"
    if backend.prepack is True:
        yield "backend.prepack is for backend.name=cpu"
    if config.model.base_dtype == "int8":
        yield "model.base_dtype=int8 is for backend.name=cpu"
    if backend.compile is True:
        yield "backend.compile=true is for backend.name=cpu: on a GPU it has its own"


def _on_ipex(config: Config) -> Iterator[str]:
    method, needed = config.method, "backend.name=ipex is for LoRA on a bf16 base"
    if method.trains_all or method.use_dora:
        yield f"{needed}: no full weights, no method.use_dora"
    if config.base_dtype != "auto" or config.model.dtype == "float32":
        yield f"{needed}: no qlora, model.base_dtype or model.dtype=float32"
    if config.backend.compile is True:
        yield "backend.compile=true is for backend.name=cpu, not for ipex"


def load(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and validate.

    Raises UserError, one line, naming the file or override and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as model, data, train; found no mapping")
    # A section whose keys are all commented out reads as None.
    values = {section: {} if keys is None else keys for section, keys in values.items()}
    for override in overrides or []:
        _apply(values, override)
    return build(values, str(path))


def build(values: dict[str, Any], origin: str) -> Config:
    """Validate a nested mapping; `origin` (a file name, say) opens the error line."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_describe(problem) for problem in error.errors())
        raise UserError(f"{origin}: {'; '.join(problems)}") from None


def check_data(values: dict[str, Any]) -> DataConfig:
    """Validate a data section that came from command-line options, not from a file."""
    try:
        return DataConfig.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_describe(problem) for problem in error.errors())
        raise UserError(f"options: {'; '.join(problems)}") from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise UserError(f"override {override!r}: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: {_one_line(error)}") from None
    mapping = values.setdefault(section, {})
    if not isinstance(mapping, dict):
        raise UserError(f"override {override!r}: {section} is not a section")
    mapping[name] = value


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"][:2])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{_nearest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where} is required"
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return str(message)
    if isinstance(problem["input"], dict | list):
        return f"{where}: {message}"
    return f"{where}={problem['input']}: {message[0].lower()}{message[1:]}"


def _nearest(location: tuple[str | int, ...]) -> str:
    """A hint at the known key that was probably meant, in this section or any other."""
    sections: dict[str, list[str]] = {}
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            sections[name] = list(annotation.model_fields)
    unknown = str(location[-1])
    if len(location) == 1:
        known, others = list(sections), []
    else:
        known = sections[str(location[0])]
        others = [f"{section}.{key}" for section, keys in sections.items() for key in keys]
    if close := difflib.get_close_matches(unknown, known, n=1):
        return f" (did you mean {'.'.join([*map(str, location[:-1]), close[0]])}?)"
    for other in others:
        if other.endswith(f".{unknown}"):
            return f" (did you mean {other}?)"
    return f" (known here: {', '.join(known)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


KNOWN_FORMATS = tuple(name for name in get_args(DataFormat) if name != "auto")
