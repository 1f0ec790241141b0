"""The sections of the YAML configuration: their fields and bounds.

The string below each field is its documentation.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from intel_ft.config_method import MethodConfig
from intel_ft.config_sources import (
    Auto,
    DataFormat,
    OnLong,
    PathOrId,
    Section,
    TemplateName,
    Train,
    WithSources,
)
from intel_ft.config_text import distinct_texts, expand_path


class ModelConfig(Section):
    """The base model, and how far its files are trusted."""

    name_or_path: PathOrId = Field(min_length=1)
    """A local model folder with safetensors, or a Hub id (org/name)."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null uses the default branch."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of matmuls. float16 is only for GPUs."""
    base_dtype: Literal["auto", "int8", "nf4", "int4"] = "auto"
    """Format of the frozen weights. auto: nf4 if method.name is qlora, otherwise model.dtype.
    int4: the weights that export --adapter --format int4 writes and OpenVINO serves."""
    quantization: dict[str, Any] = {}
    """Quantization settings for base_dtype=int4, such as {group_size: 64}: the keys of export
    --set, and `format` (int4 or int8)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read that code first."""
    allow_pickle: bool = False
    """Load .bin weights. They are pickle files, which can run code when loaded."""
    adapter: PathOrId | None = None
    """Start from this LoRA adapter of the base: the folder of a run, an adapter or a checkpoint, or
    a Hub id."""
    adapter_mode: Literal["continue", "merge"] = "continue"
    """What happens to model.adapter. continue: it is trained further, with its own rank and
    targets; merge: it is added to the base weights, and a new adapter (or all weights) is
    trained."""
    add_tokens: Annotated[list[str], AfterValidator(distinct_texts)] = []
    """Words to add to the vocabulary, one token each. They are recognized anywhere in the data.
    Their embeddings are trained."""
    add_special_tokens: Annotated[list[str], AfterValidator(distinct_texts)] = []
    """Control tokens to add to the vocabulary. Only a chat template writes them. Their embeddings
    are trained."""

    @property
    def new_tokens(self) -> list[str]:
        """Both kinds of tokens to add."""
        return self.add_tokens + self.add_special_tokens

    @property
    def base(self) -> "ModelConfig":
        """The base alone, without the adapter and the tokens that training starts with."""
        start = ("adapter", "adapter_mode", "add_tokens", "add_special_tokens")
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in start})

    @property
    def merged_adapter(self) -> str | None:
        """The adapter that is merged into the base first."""
        return self.adapter if self.adapter_mode == "merge" else None

    @property
    def continued_adapter(self) -> str | None:
        """The adapter that is trained further."""
        return self.adapter if self.adapter_mode == "continue" else None


class DataConfig(WithSources):
    """Where the examples come from, and how they become tokens with a loss mask."""

    train: Train
    """Training data: a file or folder (.jsonl, .csv, .parquet, .txt, ...), a pattern such as
    data/*.jsonl, a URL such as s3://bucket/file, a Hub id; or a list of sources."""
    eval: PathOrId | None = None
    """Validation data: one file, folder, pattern, URL or Hub id, in the same format."""
    split: str = "train"
    """Split of data.train, or a slice of it such as train[:1000]."""
    eval_split: str | None = None
    """Split of data.eval; null uses data.split."""
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of data.train that becomes the validation set if data.eval is not set."""
    format: DataFormat = "auto"
    """Meaning of the columns; auto detects it from their names."""
    columns: dict[str, str] = {}
    """Maps the column names that format expects to those in the data, such as
    {instruction: question, output: reply}."""
    weight_column: str | None = None
    """Column of data.train with the weight of each example in the loss, a number above 0; null: all
    examples have the same weight."""
    on_bad: Literal["error", "drop"] = "error"
    """What happens to rows that cannot be used, such as those with an empty answer."""
    template: TemplateName = "auto"
    """Prompt template; auto uses the tokenizer's chat_template if it has one."""
    system_prompt: str | None = None
    """System message for conversations that have none."""
    max_length: int = Field(1024, ge=8)
    """Maximum tokens per example. Attention costs grow with its square."""
    on_long: OnLong = "error"
    """What happens to examples that are longer than max_length. split is for format text only: a
    long document becomes several examples, and no token is lost."""
    split_overlap: int = Field(1, ge=1)
    """With on_long=split: tokens of the previous part that each part repeats as context, without
    training on them again. With 1, every token but a document's first is trained on."""
    loss_on: Literal["completion", "all", "last"] = "completion"
    """Tokens in the loss. completion: those of all answers; all: every token; last: those of the
    last answer. Plain text always uses all."""
    roles_to_train: list[Literal["system", "user", "assistant", "tool"]] = Field(
        ["assistant"], min_length=1
    )
    """Roles whose turns are trained on. A turn's own weight, train or loss key takes precedence."""
    earlier_answers: Literal["separate", "context"] = "separate"
    """Earlier answers that the chat template changes when later turns follow, for example by
    removing their reasoning. separate: each is trained on in a separate example; context: they
    are not trained on."""
    cache: PathOrId = Field("auto", min_length=1)
    """Where tokenized data is kept on disk for later runs. auto: sources of 32 MiB or more, and all
    where a host has several ranks, in the user's cache folder; off: nothing is kept; a folder: all
    sources, in that folder."""
    cache_gib: float = Field(100.0, gt=0)
    """Maximum size of the cache in GiB. Above it, the least recently used data is deleted."""
    streaming: bool = False
    """Read data.train while training, without storing it. Needs train.max_steps."""
    buffer: int = Field(10_000, ge=1)
    """With streaming: number of rows in the shuffle buffer, a multiple of
    train.global_batch_size."""

    @model_validator(mode="after")
    def _sources_fit_together(self) -> "DataConfig":
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError(
                "only some sources in train have a weight: give every source one, or none"
            )
        if self.split_overlap >= self.max_length:
            raise ValueError(
                f"split_overlap ({self.split_overlap}) must be less than max_length"
                f" ({self.max_length})"
            )
        return self


class TrainConfig(Section):
    """The optimizer steps: how many, how large, how fast, and when to save and evaluate."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the training data."""
    max_steps: int | None = Field(None, ge=1)
    """Number of optimizer steps; overrides epochs."""
    global_batch_size: int = Field(16, ge=1)
    """Examples per optimizer step, over all ranks together."""
    max_tokens_per_row: int | Auto = "auto"
    """Maximum tokens in a packed row. Longer rows are faster up to about 2048 tokens, but need more
    memory."""
    share_prefixes: bool = True
    """Compute a prefix that several examples of a row share (a system prompt, a question with
    several answers) only once. Affects speed, not results."""
    keep_answers_together: bool = True
    """Put the answers to one prompt into the same step, where the prompt is computed once. One
    prompt gets at most a quarter of a step's examples. All other examples are in random order."""
    learning_rate: float = Field(2e-4, gt=0, le=10)
    """Peak learning rate."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Learning rate schedule."""
    warmup_ratio: float = Field(0.03, ge=0.0, lt=1.0)
    """Share of the steps used for linear warmup."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 does not clip."""
    optimizer: Literal[
        "adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "sgd", "adafactor"
    ] = "adamw_torch_fused"
    """Optimizer. paged_adamw_32bit moves its state to host memory if a GPU is full."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the adapter's weights, the order of the examples, and dropout."""
    eval_steps: int | None = Field(None, ge=1)
    """Optimizer steps between evaluations; null evaluates after each epoch."""
    save_steps: int = Field(100, ge=1)
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints to keep."""
    logging_steps: int = Field(1, ge=1)
    """Optimizer steps between lines of metrics."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many consecutive evaluations that do not improve best_metric."""
    best_metric: Literal["loss", "accuracy"] = "loss"
    """Metric that selects the best evaluation, whose weights are the result: the lowest validation
    loss, or the highest accuracy on pairs or judged answers (method.name=preference)."""
    router_aux_loss: bool | Auto = "auto"
    """Add the load-balancing loss of the routers of an MoE model; auto: if the model's config sets
    output_router_logits."""
    activation_checkpointing: bool = False
    """Recompute activations in backward: much less memory, about a third more time."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]
    """Experiment trackers, in addition to metrics.jsonl."""
    callbacks: list[str] = []
    """Your own transformers.TrainerCallback classes, each as module:Class."""

    @model_validator(mode="after")
    def _row_is_a_length(self) -> "TrainConfig":
        if isinstance(self.max_tokens_per_row, int) and self.max_tokens_per_row < 8:
            raise ValueError("max_tokens_per_row must be at least 8")
        return self


class BackendConfig(Section):
    """The device, the threads, and the communication between ranks."""

    name: Literal["auto", "cpu", "cuda", "ipex"] = "auto"
    """Device. auto never selects ipex, which is archived."""
    threads: int | Auto = "auto"
    """Threads per rank; auto uses all cores that this process may use."""
    collective: Literal["auto", "ccl", "mpi", "gloo", "nccl"] = "auto"
    """Library that exchanges gradients between ranks; nccl is for cuda, the others for cpu."""
    timeout: int = Field(1800, ge=1)
    """Seconds that a rank waits for the others in a collective."""
    heartbeat_timeout: int = Field(60, ge=1)
    """Seconds without a heartbeat after which a rank counts as failed."""
    bind: Literal["auto", "none"] = "auto"
    """Bind the ranks of a host to separate cores and memory."""
    prepack: bool | Auto = "auto"
    """Keep a second copy of frozen bf16 weights in oneDNN's layouts: faster, twice the memory."""
    share_base: Literal["auto", "cache", "off"] = "auto"
    """How the ranks of a host hold the frozen base. auto: one copy in memory; cache: one copy, also
    kept on disk for later runs; off: one copy per rank."""
    compile: bool | Auto = "auto"
    """Use torch.compile on the model's own layers instead of the fused layers of intel_ft."""
    shard: bool = False
    """Shard weights, gradients and optimizer state over the ranks (FSDP2): for models that do not
    fit one rank."""


class OutputConfig(Section):
    """Where the results go."""

    directory: Annotated[Path, AfterValidator(lambda path: Path(expand_path(str(path))))]
    """The run's folder."""


class Sections(Section):
    """All sections of a run, not checked against each other yet."""

    model: ModelConfig
    data: DataConfig
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()
    backend: BackendConfig = BackendConfig()
    output: OutputConfig

    @property
    def base_dtype(self) -> Literal["auto", "int8", "nf4", "int4"]:
        """Format of the frozen weights; auto stands for model.dtype."""
        base_dtype = self.model.base_dtype
        return "nf4" if base_dtype == "auto" and self.method.name == "qlora" else base_dtype
