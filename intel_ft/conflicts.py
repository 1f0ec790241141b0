"""Settings that cannot be combined, each pair with a sentence."""

from collections.abc import Iterator

from intel_ft.config_method import CHANGES_BASE
from intel_ft.config_sections import Sections

_NEEDS_PLAIN_BASE = (
    "requires unmodified base weights: it cannot be combined with qlora, model.base_dtype or"
    " backend.prepack=true"
)


def conflicts(config: Sections) -> Iterator[str]:
    """Settings in `config` that cannot be combined, one sentence each."""
    method, backend, train = config.method, config.backend, config.train
    row, longest = train.max_tokens_per_row, config.data.max_length
    if isinstance(row, int) and row < longest:
        yield f"train.max_tokens_per_row ({row}) must be at least data.max_length ({longest})"
    if config.data.loss_on == "all" and config.data.roles_to_train != ["assistant"]:
        yield "data.roles_to_train has no effect with data.loss_on=all: remove one of them"
    if config.method.compares:
        yield from _on_compared_data(config)
    elif train.best_metric == "accuracy":
        yield (
            f"train.best_metric=accuracy needs method.name=preference or reward, not {method.name}"
        )
    if train.early_stopping and not (config.data.eval or config.data.eval_fraction):
        yield "train.early_stopping needs data.eval or data.eval_fraction"
    if config.data.streaming:
        yield from _of_a_stream(config)
    prepack = backend.prepack is True
    converts_base = config.base_dtype != "auto" or prepack
    caches = backend.share_base == "cache"
    if method.trains_all and (config.model.base_dtype != "auto" or prepack or caches):
        key = "model.base_dtype" if config.model.base_dtype != "auto" else "backend.share_base"
        key = "backend.prepack" if prepack else key
        yield f"{key} applies to frozen weights, but all weights are trained here"
    if method.use_dora and converts_base:
        yield f"method.use_dora {_NEEDS_PLAIN_BASE}"
    if backend.compile is True and converts_base:
        yield f"backend.compile=true {_NEEDS_PLAIN_BASE}"
    yield from _at_start(config)
    yield from _on_int4(config)
    yield from _on_shards(config)
    if backend.name == "cpu" and backend.collective == "nccl":
        yield "backend.collective=nccl requires backend.name=cuda"
    if backend.name == "cuda":
        yield from _on_cuda(config)
    if backend.name == "ipex":
        yield from _on_ipex(config)


def _at_start(config: Sections) -> Iterator[str]:
    """Conflicts of the adapter and the tokens that a run starts with."""
    model, method = config.model, config.method
    if model.merged_adapter is None and model.adapter_mode == "merge":
        yield "model.adapter_mode=merge needs model.adapter"
    if both := set(model.add_tokens) & set(model.add_special_tokens):
        yield f"model.add_tokens and model.add_special_tokens both contain {min(both)!r}"
    if model.new_tokens and model.continued_adapter is not None:
        yield "model.add_tokens needs a new adapter: set model.adapter_mode=merge"
    if model.continued_adapter is not None and method.trains_all:
        yield (
            "model.adapter_mode=continue trains an adapter, but all weights are trained here: set"
            " model.adapter_mode=merge"
        )
    if model.continued_adapter is not None and method.init != "default":
        yield f"method.init={method.init} is for a new adapter: set model.adapter_mode=merge"
    if model.merged_adapter is not None:
        changes = "model.adapter_mode=merge changes the base weights, so"
        if method.teacher == "base":
            yield f"{changes} method.teacher=base cannot be used: set it to the path of a model"
        if not method.trains_all and method.use_dora:
            yield f"{changes} method.use_dora cannot be saved for the original base: leave it out"
        if method.init in CHANGES_BASE:
            yield f"{changes} method.init={method.init} cannot be used: leave it out"
    if model.new_tokens and method.name == "distill":
        yield "model.add_tokens cannot be used with method.name=distill: no teacher has the tokens"
    if model.new_tokens and config.backend.name == "ipex":
        yield "model.add_tokens requires backend.name=cpu or cuda, not ipex"


def _on_int4(config: Sections) -> Iterator[str]:
    """Conflicts of int4 weights, which are those that are served."""
    model, method = config.model, config.method
    if config.base_dtype != "int4":
        if model.quantization:
            yield "model.quantization applies to model.base_dtype=int4 only"
        if method.init == "loftq":
            yield (
                "method.init=loftq corrects the rounding of model.base_dtype=int4: set that as well"
            )
        return
    kept = "base weights, which model.base_dtype=int4 keeps unchanged"
    if method.init in CHANGES_BASE:
        yield f"method.init={method.init} changes the {kept}"
    if method.modules_to_save:
        yield f"method.modules_to_save trains copies of {kept}"
    if model.merged_adapter is not None:
        yield f"model.adapter_mode=merge changes the {kept}"
    if model.new_tokens:
        yield f"model.add_tokens adds rows to {kept}"


def _on_compared_data(config: Sections) -> Iterator[str]:
    data, row = config.data, config.train.max_tokens_per_row
    preference = f"method.name={config.method.name}"
    if config.method.name == "reward":
        yield from _on_a_reward_model(config)
    if len(data.sources) > 1:
        yield (
            f"{preference} reads one source, but data.train has {len(data.sources)}: combine them"
            " into one"
        )
    if data.format != "auto":
        yield f"data.format={data.format} cannot be used with {preference}: leave it out"
    if data.loss_on != "completion":
        yield f"data.loss_on={data.loss_on} cannot be used with {preference}: answers are compared"
    if data.roles_to_train != ["assistant"]:
        yield f"data.roles_to_train cannot be used with {preference}: answers are compared"
    if data.on_long not in ("error", "drop"):
        yield (
            f"data.on_long={data.on_long} cannot be used with {preference}: a shortened answer is"
            " not the one that was judged: set it to drop"
        )
    if config.method.compares == "pairs" and isinstance(row, int) and row < 2 * data.max_length:
        yield (
            f"train.max_tokens_per_row ({row}) must hold a pair, two answers of data.max_length"
            f" ({data.max_length}): raise it to {2 * data.max_length}"
        )
    if data.weight_column is not None:
        yield (
            f"data.weight_column cannot be used with {preference}: all answers have the same weight"
        )
    if config.train.best_metric == "accuracy" and not (data.eval or data.eval_fraction):
        yield "train.best_metric=accuracy needs data.eval or data.eval_fraction"


def _on_a_reward_model(config: Sections) -> Iterator[str]:
    """Conflicts of a score in place of the head."""
    reward = "cannot be used with method.name=reward"
    if config.base_dtype == "int4":
        yield f"model.base_dtype=int4 {reward}: int4 weights are for language models only"
    if config.model.new_tokens:
        yield (
            f"model.add_tokens {reward}: add them in a supervised run, merge that run, and start"
            " from the result"
        )
    if config.model.continued_adapter is not None:
        yield (
            f"model.adapter_mode=continue {reward}: no adapter of a language model has a score:"
            " set model.adapter_mode=merge"
        )


def _on_shards(config: Sections) -> Iterator[str]:
    """Conflicts of weights that are sharded over the ranks."""
    method, model, backend, train = config.method, config.model, config.backend, config.train
    key = "backend.shard"
    if not backend.shard:
        return
    if method.name not in ("lora", "full"):
        yield f"{key} supports method.name=lora and full, not {method.name}"
    if name := method.first_changed(("modules_to_save", "use_dora", "init")):
        yield f"{key} does not support method.{name}: leave it out"
    if model.base_dtype != "auto":
        yield f"{key} shards weights as loaded: it does not support model.base_dtype"
    if model.merged_adapter is not None or model.new_tokens:
        change = "adapter_mode=merge" if model.merged_adapter is not None else "add_tokens"
        yield f"{key} does not support model.{change}: merge or extend the base beforehand"
    if train.optimizer == "adafactor":
        yield f"{key} does not support train.optimizer=adafactor: set it to adamw_torch_fused"
    if backend.name in ("cuda", "ipex"):
        yield f"{key} requires backend.name=cpu, not {backend.name}"
    for name in ("prepack", "compile"):
        if getattr(backend, name) is True:
            yield f"{key} cannot be combined with backend.{name}=true"
    if backend.share_base == "cache":
        yield (
            f"{key} cannot be combined with backend.share_base=cache: each rank holds only its part"
        )


def _on_cuda(config: Sections) -> Iterator[str]:
    backend = config.backend
    if backend.collective not in ("auto", "nccl"):
        yield f"backend.collective={backend.collective} requires backend.name=cpu"
    if backend.prepack is True:
        yield "backend.prepack requires backend.name=cpu"
    if (dtype := config.model.base_dtype) in ("int8", "int4"):
        yield f"model.base_dtype={dtype} requires backend.name=cpu"
    if backend.compile is True:
        yield "backend.compile=true requires backend.name=cpu: a GPU uses its own kernels"
    if backend.share_base == "cache":
        yield "backend.share_base=cache requires backend.name=cpu"


def _on_ipex(config: Sections) -> Iterator[str]:
    method, limit = config.method, "backend.name=ipex only supports LoRA on a bf16 base"
    if method.trains_all or method.use_dora or method.name == "reward":
        yield f"{limit}: it cannot train all weights or a reward model, or use method.use_dora"
    if config.base_dtype != "auto" or config.model.dtype == "float32":
        yield f"{limit}: it cannot use qlora, model.base_dtype or model.dtype=float32"
    if config.backend.compile is True:
        yield "backend.compile=true requires backend.name=cpu, not ipex"
    if config.backend.share_base == "cache":
        yield "backend.share_base=cache requires backend.name=cpu, not ipex"


def _of_a_stream(config: Sections) -> Iterator[str]:
    data, batch = config.data, config.train.global_batch_size
    if config.train.max_steps is None:
        yield "data.streaming needs train.max_steps: the number of rows is not known"
    if len(data.sources) > 1 or any(source.max_examples for source in data.sources):
        yield "data.streaming reads one source in full: remove other sources and max_examples"
    if config.method.compares is not None:
        yield f"data.streaming cannot be used with method.name={config.method.name}"
    if data.weight_column is not None:
        yield "data.weight_column cannot be used with data.streaming: set data.streaming=false"
    if data.eval_fraction:
        yield "data.streaming cannot be used with data.eval_fraction: set data.eval"
    if data.buffer % batch:
        yield f"data.buffer ({data.buffer}) must be a multiple of train.global_batch_size ({batch})"
    if data.on_bad == "drop" or data.of(data.sources[0]).on_long in ("drop", "split"):
        yield (
            "with data.streaming each row gives one example: set data.on_bad to error, and"
            " data.on_long to error or truncate"
        )
