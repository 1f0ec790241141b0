"""Tasks of lm-evaluation-harness: its documents, prompts and metrics, on a model of intel_ft.

The harness (lm-eval 0.4.13) is an optional package: only `--task lm_eval:NAME` imports it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.export.run_data import SEED
from intel_ft.inference.evaluate import cross_entropy
from intel_ft.runtimes.language_model import LanguageModel, Sampling

logger = logging.getLogger(__name__)

PREFIX = "lm_eval:"
DOCUMENTS = 200
_FEW_SHOT_SEED = 1234  # lm_eval.evaluator's default
_ANSWER_TOKENS = 256  # lm_eval.models.huggingface's default


@dataclass(frozen=True)
class HarnessTask:
    """Documents of one or more of the harness's tasks, and the metric that scores each.

    tasks: lm_eval's objects by name; documents: their indices, by task; filter: which of the task's
    extractions of an answer is scored, None for its first.
    """

    name: str
    tasks: dict[str, Any]
    documents: dict[str, list[int]]
    metric: str
    filter: str | None

    def scores(self, model: LanguageModel, answers: Sequence[tuple[str, str]]) -> list[float]:
        """The score of each document; `answers`, to the validation set's prompts, are not used."""
        from lm_eval import evaluate

        for task in self.tasks.values():
            task.set_fewshot_seed(seed=_FEW_SHOT_SEED)  # the same examples for every model
        loaded = {"tasks": self.tasks, "groups": {}, "group_map": {}}
        results = evaluate(harness_model(model), loaded, samples=self.documents, bootstrap_iters=0)
        return [
            self._score(sample)
            for _, samples in sorted(results["samples"].items())
            for sample in sorted(self._filtered(samples), key=lambda sample: sample["doc_id"])
        ]

    def _filtered(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = list(dict.fromkeys(sample["filter"] for sample in samples))
        if self.filter is not None and self.filter not in names:
            raise UserError(f"--task {self.name}: its filters are {', '.join(names)}")
        return [sample for sample in samples if sample["filter"] == (self.filter or names[0])]

    def _score(self, sample: dict[str, Any]) -> float:
        try:
            return float(sample[self.metric])
        except (KeyError, TypeError, ValueError):
            numbers = [name for name in sample["metrics"] if isinstance(sample[name], int | float)]
            raise UserError(
                f"--task {self.name}: {self.metric} is not one number per document: choose one of"
                f" {', '.join(numbers) or 'another task'}"
            ) from None


def load_harness(name: str, documents: int | None) -> HarnessTask:
    """The task `lm_eval:NAME` or `lm_eval:NAME:METRIC`, where NAME may be a YAML file.

    documents: how many are scored, drawn at random over all tasks of a group; None for DOCUMENTS.
    METRIC may end with a filter, such as `exact_match,strict-match`. Raises EnvironmentProblem
    without the package, UserError for a task that cannot be loaded or has no such metric.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EnvironmentProblem(
            f"--task {name} needs lm-evaluation-harness, and {error.name} is not installed: pip "
            "install lm-eval"
        ) from None
    task_name, _, metric = name.removeprefix(PREFIX).partition(":")
    is_file = Path(task_name).suffix in (".yaml", ".yml")
    try:
        # The index of its own tasks takes many seconds, and a file needs none.
        loaded = TaskManager(include_defaults=not is_file).load([task_name])
        counts = {key: len(task.eval_docs) for key, task in loaded["tasks"].items()}
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"--task {name}: lm-evaluation-harness cannot load {task_name} "
            f"({type(error).__name__}: {text[:300]})"
        ) from error
    metric, _, chosen = metric.partition(",")
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(
                f"--task {name}: {task.task_name} executes generated code or needs more than text, "
                "which is not supported: choose another task"
            )
        # A drop is a loss only where more is better, and perplexities are no score of a document.
        known = [key for key, more in task.higher_is_better().items() if more]
        if not known:
            raise UserError(
                f"--task {name}: {task.task_name} has no metric for which higher is better"
            )
        metric = metric or known[0]
        if metric not in known:
            raise UserError(f"--task {name}: {task.task_name} has the metrics {', '.join(known)}")
    drawn = _draw(counts, documents or DOCUMENTS)
    logger.info("%s: %d documents, %s", task_name, sum(map(len, drawn.values())), metric)
    tasks = {key: loaded["tasks"][key] for key in drawn}  # it would run the others completely
    return HarnessTask(name, tasks, drawn, metric, chosen or None)


def _draw(counts: dict[str, int], most: int) -> dict[str, list[int]]:
    """At most `most` of all documents, drawn at random: their indices by task."""
    every = [(task, index) for task, count in sorted(counts.items()) for index in range(count)]
    drawn: dict[str, list[int]] = {}
    for place in sorted(np.random.default_rng(SEED).permutation(len(every))[:most]):
        task, index = every[place]
        drawn.setdefault(task, []).append(index)
    return drawn


def harness_model(model: LanguageModel) -> Any:
    """`model` as the harness's class of models."""
    from lm_eval.api.model import TemplateLM

    class HarnessModel(TemplateLM):  # type: ignore[misc]
        tokenizer = model.tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(model.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            start = model.tokenizer.bos_token_id
            return self.eot_token_id if start is None else int(start)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            # None is the tokenizer's own way: with a beginning of text where it adds one.
            given = add_special_tokens is not None
            special = {"add_special_tokens": add_special_tokens} if given else {}
            return list(model.tokenizer.encode(string, **special))

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            return [continuation_score(model, *tokens) for _, *tokens in requests]

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            raise UserError("--task: perplexity is not a score per document: choose another task")

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            return [
                harness_answer(model, self.tok_encode(one.args[0]), one.args[1]) for one in requests
            ]

    return HarnessModel()


def continuation_score(
    model: LanguageModel, context: list[int], continuation: list[int]
) -> tuple[float, bool]:
    """The log-probability of `continuation` behind `context`, and whether it is the greedy one.

    Of what is longer than the model's context window, the end is taken.
    """
    window = model.context_window
    tokens = np.array([*context, *continuation], dtype=np.int32)
    count = len(continuation)
    if window is not None:
        tokens = tokens[-(window + 1) :]
        count = min(count, len(tokens) - 1)
    targets = tokens[len(tokens) - count :]
    logits = model.logits(tokens[:-1], np.arange(len(tokens) - 1 - count, len(tokens) - 1))
    score = -float(cross_entropy(logits, targets).sum())
    return score, bool((logits.argmax(axis=1) == targets).all())


def harness_answer(model: LanguageModel, prompt: list[int], options: dict[str, Any]) -> str:
    """The model's answer, generated with the task's `generation_kwargs`, which are `options`.

    Of a prompt that leaves no room for the answer, the end is taken.
    """
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    limit = next((int(options[name]) for name in names if name in options), _ANSWER_TOKENS)
    until = options.get("until") or []
    sampled = options.get("do_sample", True)
    sampling = Sampling(
        max_new_tokens=limit,
        temperature=float(options.get("temperature") or 0) if sampled else 0.0,
        top_p=float(options.get("top_p") or 1),
        top_k=int(options.get("top_k") or 0),
        stop=tuple(filter(None, [until] if isinstance(until, str) else until)),
    )
    window = model.context_window
    if window is not None:
        prompt = prompt[-max(window - limit, 1) :]
    return model.generate(prompt, sampling).text
