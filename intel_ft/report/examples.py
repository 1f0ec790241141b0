"""Training examples as the run reads them, with what is trained on, for `report --examples`."""

import json
from pathlib import Path

from intel_ft.config import load
from intel_ft.data.shown import shown_examples
from intel_ft.files import write_text
from intel_ft.models.tokenizer import load_tokenizer
from intel_ft.report.read_run import EXAMPLES
from intel_ft.training.setup import read_data


def write_examples(run: Path, count: int) -> None:
    """Write RUN/examples.jsonl: the first `count` training examples as parts of their text.

    Raises UserError where the run's config, model or data are no longer there.
    """
    config = load(run / "config.yaml")
    tokenizer = load_tokenizer(config.model)
    training, _ = read_data(config, tokenizer)
    lines = [
        {"tokens": len(one.tokens), "trained": sum(one.trained), "parts": one.parts}
        for one in shown_examples(training.examples, tokenizer, count)
    ]
    write_text(run / EXAMPLES, "".join(json.dumps(line) + "\n" for line in lines))
