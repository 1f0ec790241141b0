"""The verbs of the command line as functions, for scripts and notebooks (docs/python.md).

`from intel_ft import load_config, train, evaluate, merge, export, generate` takes them from here,
and so does the command line. Each raises the exceptions of `intel_ft.errors`: UserError for bad
input, EnvironmentProblem where the machine or the installation lacks something, and IntelFTError,
the base class of all, for other failures. Heavy packages load when a function first needs them.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from intel_ft import config as configuration
from intel_ft.artifacts.resolve import Artifact, resolve
from intel_ft.config import Config
from intel_ft.errors import UserError
from intel_ft.gc_pause import gc_paused
from intel_ft.optional_packages import import_peft, import_trainer

if TYPE_CHECKING:
    from intel_ft.distributed.rank_startup import LaunchOptions
    from intel_ft.export.export import ExportReport
    from intel_ft.export.merge import MergeReport
    from intel_ft.inference.evaluate import EvalResult
    from intel_ft.inference.score_pairs import RewardResult
    from intel_ft.quantization import Settings
    from intel_ft.runtimes.language_model import Completion, LanguageModel, Sampling, Stream
    from intel_ft.templates.template import Template
    from intel_ft.training.run import Summary

logger = logging.getLogger(__name__)

TemplateName = Literal["auto", "llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"]
WeightFormat = Literal["fp16", "int8", "int4", "nf4", "mxfp4", "auto"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: `evaluate` and `generate` take it in place of a folder."""

    artifact: Artifact
    engine: "LanguageModel"

    def prompt_form(
        self, template: str = "auto", system_prompt: str | None = None
    ) -> tuple["Template", str | None]:
        """Return the template and the system prompt to use, by default those of training.

        Raises UserError for `tokenizer` where the tokenizer has no chat template.
        """
        from intel_ft.inference.prompt_template import prompt_template

        chosen, _ = prompt_template(self.artifact, self.engine.tokenizer, template)
        return chosen, system_prompt or self.artifact.system_prompt


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file of a run; `overrides` are `section.key=value`, as on the command line.

    The result is immutable: for another value, load the file again with another override. Raises
    UserError, one line that names the file or the override and the key.
    """
    return configuration.load(Path(path), list(overrides))


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    launched: "LaunchOptions | None" = None,
) -> "Summary":
    """Train the model that `config` describes, and write its run folder.

    resume: continue from the latest complete checkpoint. overwrite: delete the results of an
    earlier run first. One of them is needed where `config.output.directory` holds a run. launched:
    what `intel-ft launch` passes to each rank.

    Returns a Summary: losses in nats per supervised token (`eval_loss` of the best weights, which
    are kept, None without a validation set), `tokens_per_s`, `mfu` and `utilization`, `seconds`.

    Raises UserError, EnvironmentProblem (such as too little memory), Stopped after SIGINT or
    SIGTERM, once a checkpoint is saved, and IntelFTError. Complete checkpoints survive all of them.
    """
    from intel_ft.distributed.rank_startup import LaunchOptions, start_rank

    backend = config.backend
    bound = start_rank(launched or LaunchOptions(), backend.bind, backend.collective)
    import_peft()  # and with it torch, after this process was bound to its cores
    import_trainer()
    with gc_paused():
        from intel_ft.distributed.launch.tune_ranks import ranks_instead
        from intel_ft.training.run import train as run_training

    decisions = [*bound, *ranks_instead(config)]
    return run_training(config, resume=resume, overwrite=overwrite, bound=decisions)


def load_model(
    model: str | Path, *, base: str | Path | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load a model: the folder of a run, an adapter, a merged, OpenVINO or base model, or a Hub id.

    OpenVINO folders run in OpenVINO GenAI, all others in torch. base: where an adapter's base model
    is now, if it is not where training read it. Raises UserError where there is no model, or `base`
    has other weights, EnvironmentProblem where a package is missing.
    """
    from intel_ft.runtimes.open_model import open_model

    artifact = _with_base(resolve(str(model)), base, trust_remote_code=trust_remote_code)
    return LoadedModel(artifact, open_model(artifact, trust_remote_code=trust_remote_code))


def _with_base(artifact: Artifact, base: str | Path | None, *, trust_remote_code: bool) -> Artifact:
    if base is None:
        return artifact
    from intel_ft.export.adapter_match import with_base

    return with_base(artifact, str(base), trust_remote_code=trust_remote_code)


def evaluate(
    model: str | Path | LoadedModel,
    data: str | Path,
    *,
    split: str = "train",
    data_format: str | None = None,
    template: str = "auto",
    system_prompt: str | None = None,
    max_length: int | None = None,
    on_long: Literal["error", "drop", "truncate"] | None = None,
    on_bad: Literal["error", "drop"] | None = None,
    loss_on: Literal["completion", "all", "last"] | None = None,
    generate: int = 0,
    max_new_tokens: int = 256,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
) -> "EvalResult | RewardResult":
    """Measure the loss of a model on a dataset, and optionally its answers.

    model, base: as for `load_model`. data: a file, a folder or a Hub id. data_format: `auto`
    detects it from the columns. template, system_prompt: by default those of training. max_length:
    in tokens; on_long: what happens to longer examples; on_bad: what happens to rows that cannot be
    used; loss_on: the tokens that count. Without these and data_format, the data is read as the
    model's run read its own, so that the loss is comparable; outside a run's folder as the defaults
    of `data` in a config say, but for loss_on, which intel_ft.json has. generate: number of
    examples to answer, greedily, with at most `max_new_tokens` tokens each.

    Returns an EvalResult: `loss` in nats per supervised token, `perplexity` = exp(loss), and for
    generated answers `exact_match` and `parses` (valid Python), both from 0 to 1. For a reward
    model, which needs pairs, a RewardResult.

    Raises UserError for data or a model that cannot be read, IntelFTError for a loss that is NaN.
    """
    from intel_ft.data.prepare import prepare
    from intel_ft.inference.evaluate import evaluate as run_evaluation
    from intel_ft.training.run_record import config_of_run

    artifact = model.artifact if isinstance(model, LoadedModel) else resolve(str(model))
    prompt = system_prompt or artifact.system_prompt
    given = {
        "format": data_format,
        "max_length": max_length,
        "on_long": on_long,
        "on_bad": on_bad,
        "loss_on": loss_on,
    }
    run = config_of_run(artifact)
    as_trained = {"loss_on": artifact.loss_on or "completion"}
    if run is not None:
        trained_on = ("columns", "roles_to_train", "earlier_answers")
        as_trained = run.data.model_dump(include={*given, *trained_on})
    settings = configuration.check_data(
        {
            **as_trained,
            **{name: value for name, value in given.items() if value is not None},
            "train": str(data),
            "split": split,
            "template": artifact.template or "auto" if template == "auto" else template,
            "system_prompt": prompt,
        }
    )
    if artifact.is_reward_model:
        from intel_ft.inference.score_pairs import score_data

        if generate:
            raise UserError(
                f"{artifact.location}: a reward model scores answers and cannot generate them"
            )
        moved = _with_base(artifact, base, trust_remote_code=trust_remote_code)
        return score_data(moved, settings, str(data), trust_remote_code=trust_remote_code)
    loaded = _loaded(model, base=base, trust_remote_code=trust_remote_code)
    prepared = prepare(settings, str(data), loaded.engine.tokenizer, answers="auto")
    for line in prepared.report.left_out():
        logger.info("%s", line)
    result = run_evaluation(
        loaded.engine,
        prepared,
        system_prompt=prompt,
        generate=generate,
        max_new_tokens=max_new_tokens,
    )
    return replace(result, loss_on=settings.loss_on)


def merge(
    source: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
) -> "MergeReport":
    """Merge the adapter in `source` into its base model, and write a bf16 model folder.

    source: a run or adapter folder. output: a folder that is absent or empty. base: folder or Hub
    id of the base model, if it is not where training read it. Needs memory for one copy of the base
    in bf16.

    Returns a MergeReport: `agreement` compares the logits of the written folder with base plus
    adapter; `adapter_effect` and `rounding` are on the scale of its relative error.

    Raises UserError where there is no adapter to merge, it is damaged or belongs to another base,
    and IntelFTError where the merged model does not agree. Nothing is left in `output` then.
    """
    import_peft()
    with gc_paused():
        from intel_ft.export.merge import merge as run_merge

    return run_merge(
        str(source),
        Path(output),
        base=None if base is None else str(base),
        trust_remote_code=trust_remote_code,
    )


def export(
    source: str | Path,
    output: str | Path,
    weight_format: WeightFormat = "int8",
    *,
    settings: "Settings | Mapping[str, object] | None" = None,
    max_ppl_increase: float | None = None,
    min_agreement: float | None = None,
    max_task_drop: float | None = None,
    task: str | None = None,
    reference: str | Path | None = None,
    recover: bool = False,
    data: str | Path | None = None,
    split: str | None = None,
    calibration: str | Path | None = None,
    generate: int = 0,
    max_new_tokens: int = 256,
    measure: bool = True,
    device: Literal["CPU", "GPU", "NPU"] = "CPU",
    base: str | Path | None = None,
    trust_remote_code: bool = False,
) -> "ExportReport":
    """Export a model to OpenVINO IR with its tokenizer; an adapter is merged first.

    source: a run, adapter, merged or base model folder, or a Hub id. output: a folder that is
    absent or empty. weight_format: `auto` writes the smallest model that passes the quality gate.
    settings: of the quantization, such as {"group_size": 64}; docs/export.md lists them.

    The quality gate is `max_ppl_increase` over the bf16 model (0.01 is 1 %) and `min_agreement` of
    the most likely token (from 0 to 1), measured on `data`, by default the validation set of the
    run; with `auto` and neither of them, 0.01. `generate` more examples are answered, with at most
    `max_new_tokens` tokens. measure=False measures nothing. calibration: by default the training
    data of the run. device: the one that the model will run on. base: as for `merge`.

    task scores the answers, such as "metrics.py:score", and `max_task_drop` limits what is lost.
    For a reward model, `min_agreement` limits the share of pairs in the same order, and
    `max_task_drop` the pair accuracy.
    reference: another model to compare with. recover: tune int4 after compression.

    Returns an ExportReport; its `gate` is the table of candidates with their qualities.

    Raises UserError, EnvironmentProblem without the `openvino` extra, GateRefused where no
    candidate passes, Stopped after a signal once a recovery's state is saved, IntelFTError where
    the written model is wrong. Nothing is left in `output` then.
    """
    from intel_ft.export.export import export as run_export
    from intel_ft.export.gate import Gate, Limits
    from intel_ft.quantization import Settings, for_device, read_settings

    if not isinstance(settings, Settings):
        pairs = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in (settings or {}).items()
        ]
        settings = read_settings(None, pairs)
    return run_export(
        str(source),
        Path(output),
        weight_format,
        settings=for_device(settings, device),
        calibration=None if calibration is None else str(calibration),
        gate=Gate(
            limits=Limits(max_ppl_increase, min_agreement, max_task_drop),
            data=None if data is None else str(data),
            split=split,
            generate=generate,
            max_new_tokens=max_new_tokens,
            measure=measure,
            reference=None if reference is None else str(reference),
            task=task,
        ),
        recover=recover,
        device=device,
        base=None if base is None else str(base),
        trust_remote_code=trust_remote_code,
    )


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str]: the first one counts
    model: str | Path | LoadedModel,
    prompts: str,
    *,
    template: str = ...,
    system_prompt: str | None = ...,
    sampling: "Sampling | None" = ...,
    stream: "Stream | None" = ...,
    trust_remote_code: bool = ...,
) -> "Completion": ...


@overload
def generate(
    model: str | Path | LoadedModel,
    prompts: Sequence[str],
    *,
    template: str = ...,
    system_prompt: str | None = ...,
    sampling: "Sampling | None" = ...,
    batch_size: int = ...,
    trust_remote_code: bool = ...,
) -> "list[Completion]": ...


def generate(
    model: str | Path | LoadedModel,
    prompts: str | Sequence[str],
    *,
    template: str = "auto",
    system_prompt: str | None = None,
    sampling: "Sampling | None" = None,
    stream: "Stream | None" = None,
    batch_size: int = 8,
    trust_remote_code: bool = False,
) -> "Completion | list[Completion]":
    """Answer one prompt, or a list of prompts in batches of `batch_size`.

    model: as for `load_model`. template, system_prompt: by default those of training. sampling:
    greedy by default, with at most 256 new tokens; `Sampling(temperature=0.8, seed=1)` samples.
    stream: receives the text of a single answer piece by piece.

    Returns a Completion for a str, and for a list one for each prompt, in its order: `text`,
    `new_tokens` (ids), `seconds`, and `stopped`, False where the token limit cut the answer off.

    Raises UserError where a prompt is empty or too long for the model's context window.
    """
    from intel_ft.inference.batch_output import make_requests
    from intel_ft.inference.engines import complete_in_batches
    from intel_ft.runtimes.language_model import Sampling
    from intel_ft.templates.formats import Message
    from intel_ft.templates.prompt import prompt_encoder

    sampling = sampling or Sampling()
    loaded = _loaded(model, trust_remote_code=trust_remote_code)
    chosen, system = loaded.prompt_form(template, system_prompt)
    encode = prompt_encoder(loaded.engine.tokenizer, chosen, system)
    if isinstance(prompts, str):
        tokens = encode((Message("user", prompts),))
        return loaded.engine.generate(tokens, sampling, stream)
    # The seed of each prompt is that of `intel-ft generate --input`.
    requests = make_requests([(Message("user", prompt),) for prompt in prompts], 1, sampling.seed)
    encoded = [encode(request.messages) for request in requests]
    seeds = [request.seed for request in requests]
    completions = complete_in_batches(loaded.engine, encoded, seeds, sampling, batch_size)
    return [completion for _, completion in sorted(completions, key=lambda pair: pair[0])]


def _loaded(
    model: str | Path | LoadedModel,
    *,
    base: str | Path | None = None,
    trust_remote_code: bool,
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    return load_model(model, base=base, trust_remote_code=trust_remote_code)
