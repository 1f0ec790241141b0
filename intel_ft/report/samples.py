"""Answers of the base and of the trained model, for the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from intel_ft import assets
from intel_ft.artifacts.resolve import resolve
from intel_ft.config import Config, load
from intel_ft.data.prepare import Prepared, prepare
from intel_ft.data.stream import Stream
from intel_ft.export.adapter_match import with_base
from intel_ft.export.run_data import validation_of_run
from intel_ft.files import write_text
from intel_ft.inference.evaluate import answerable, greedy_answers
from intel_ft.models.load import load_tokenizer
from intel_ft.report.read_run import SAMPLES
from intel_ft.runtimes.language_model import base_config, tokenizer_config
from intel_ft.runtimes.open_model import open_model, require_language_model


def write_samples(run: Path, count: int, max_new_tokens: int, base: str | None = None) -> None:
    """Write RUN/samples.jsonl: prompts with the answers of the base and of the trained model.

    The prompts are the first `count` validation examples, or training examples in a run without
    a validation set. base: where an adapter's base model is now, if it has moved.

    Raises UserError where the run has not finished, or its model or data are no longer there.
    """
    after = resolve(str(run))
    require_language_model(after)
    config = load(run / "config.yaml")
    if base is not None:
        after = with_base(after, base, trust_remote_code=config.model.trust_remote_code)
    base_config(after)  # says --base where the base model has moved
    base_model = resolve(assets.resolve(after.base_model))
    before = replace(base_model, base_revision=after.base_revision)
    tokenizer = load_tokenizer(
        tokenizer_config(after, trust_remote_code=config.model.trust_remote_code)
    )
    prepared = _prepared(config, tokenizer)
    conversations = answerable(prepared, count)
    answers = []
    for artifact in (before, after):  # one at a time: both may not fit into memory
        model = open_model(artifact, trust_remote_code=config.model.trust_remote_code)
        answers.append(
            greedy_answers(
                model, prepared.template, conversations, after.system_prompt, max_new_tokens
            )
        )
        del model
    lines = [
        {
            "prompt": one.messages[-2].content if len(one.messages) > 1 else "",
            "before": a,
            "after": b,
        }
        for one, a, b in zip(conversations, *answers, strict=True)
    ]
    write_text(run / SAMPLES, "".join(json.dumps(line) + "\n" for line in lines))


def _prepared(config: Config, tokenizer: Any) -> Prepared:
    """The validation set, or, in a run without one, the first source of the training examples."""
    if (validation := validation_of_run(config, tokenizer)) is not None:
        return validation.prepared
    first = config.data.sources[0]
    data, source = config.data.of(first), assets.resolve(first.path)
    if data.streaming:
        return Stream(data, source, tokenizer).buffer
    return prepare(data, source, tokenizer, answers="auto").good_answers()
