"""Export one run in every format, run each in three runtimes, and print a table.

    python tools/export_table.py RUN OUTPUT [--data HELDOUT.jsonl]
    python tools/export_table.py RUN OUTPUT --speed-only

Each format of docs/export.md, and each rung of `--format auto`, is exported to OUTPUT/NAME unless
it exists; size and quality are read from its export.json. Then each is opened with Optimum-Intel,
OpenVINO GenAI and the pipeline of OpenVINO Model Server, and answers one prompt greedily:
milliseconds to the first token, and token/s after it, medians of three. Speeds are meaningful only
on an idle machine; --speed-only measures them again for the existing exports.
"""

import argparse
import json
import logging
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json, resolve
from intel_ft.demo import PROMPT
from intel_ft.errors import IntelFTError
from intel_ft.export.context import ModelToExport, prepare_context
from intel_ft.export.export import finish_export, require_packages
from intel_ft.export.gate import COLUMNS, Gate, log_line, reference_record, table_cells
from intel_ft.export.ladder import Candidate, candidates
from intel_ft.export.output import quiet
from intel_ft.export.try_candidate import try_candidate
from intel_ft.export.workspace import workspace
from intel_ft.quantization import Settings
from intel_ft.tables import Table

ROUNDS, TOKENS = 3, 64
QUALITY_COLUMNS = 6  # the first of gate.COLUMNS: name, size, and distance from the reference

Generate = Callable[[list[int], int], list[int]]
"""From a prompt and a number of tokens to exactly that many greedy tokens."""


def main() -> None:
    """Export missing formats, measure, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a run or a model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", help="validation set, if the run has none")
    parser.add_argument("--samples", type=int, default=128, help="number of calibration examples")
    parser.add_argument("--speed-only", action="store_true", help="export nothing")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("intel_ft").setLevel(logging.INFO)
    require_packages()
    formats = all_formats(Settings(samples=options.samples))
    if not options.speed_only:
        export_each(options.run, options.output, formats, options.data)
    records, speeds = {}, {}
    for one in formats:
        folder = options.output / one.name
        if folder.is_dir():
            records[one.name] = read_json(folder / "export.json")
            speeds[one.name] = speed(folder)
    print(table(records, speeds).markdown())


def all_formats(settings: Settings) -> list[Candidate]:
    """The rungs of `--format auto`, and the formats that auto does not try."""
    ladder = candidates("auto", settings)
    return [*ladder, *candidates("nf4", settings), *candidates("mxfp4", settings)]


def export_each(run: str, output: Path, formats: list[Candidate], data: str | None) -> None:
    """Export `run` to output/NAME in each of `formats` that does not exist.

    All share one merge, one reference and one fp16 IR.
    """
    missing = [one for one in formats if not (output / one.name).is_dir()]
    if not missing:
        return
    artifact, gate, settings = resolve(run), Gate(data=data), formats[0].settings
    source = ModelToExport(artifact, None, trust_remote_code=False, allow_pickle=False)
    key = {"run": run, "data": data, "samples": settings.samples}
    with workspace(output / "all", key) as work, quiet():
        context = prepare_context(source, work, gate, None, settings)
        for candidate in missing:
            result = try_candidate(context, candidate)
            print(log_line(result.row, gate.limits), file=sys.stderr, flush=True)
            folder = output / candidate.name
            finish_export(context, artifact, [result], gate, "CPU", candidate.settings, folder)


def optimum(folder: Path) -> Generate:
    """Optimum-Intel's OVModelForCausalLM."""
    import torch
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(folder)

    def generate(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
        )
        return list(tokens[0, len(prompt) :].tolist())

    return generate


def genai(folder: Path) -> Generate:
    """OpenVINO GenAI's LLMPipeline."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU")
    return lambda prompt, count: list(pipeline.generate(_tensor(prompt), _greedy(count)).tokens[0])


def model_server(folder: Path) -> Generate:
    """The pipeline that OpenVINO Model Server's LLM node creates from graph.pbtxt.

    This is GenAI's continuous batching with the graph's device and plugin_config; the server itself
    has no Python package.
    """
    import openvino_genai

    graph = (folder / "graph.pbtxt").read_text(encoding="utf-8")
    fields = dict(re.findall(r"(models_path|device|plugin_config): [\"'](.*)[\"']", graph))
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(folder / fields["models_path"]),
        openvino_genai.SchedulerConfig(),
        fields["device"],
        json.loads(fields["plugin_config"]),
    )
    return lambda prompt, count: list(
        pipeline.generate([_tensor(prompt)], [_greedy(count)])[0].m_generation_ids[0]
    )


RUNTIMES = {"Optimum": optimum, "GenAI": genai, "OVMS": model_server}


def speed(folder: Path) -> dict[str, Any]:
    """Milliseconds to the first token and token/s of the IR in `folder`, in each runtime.

    `same` is the number of leading tokens, of TOKENS, that all runtimes generate alike. Raises
    IntelFTError where a runtime generates another number of tokens than requested.
    """
    prompt = _prompt(folder)
    figures: dict[str, Any] = {}
    answers = []
    for name, open_in in RUNTIMES.items():
        with quiet():
            generate = open_in(folder)
            tokens = generate(prompt, TOKENS)  # the first call warms up
            if len(tokens) != TOKENS:
                raise IntelFTError(f"{folder}: {name} generated {len(tokens)} tokens, not {TOKENS}")
            first = statistics.median(_seconds(generate, prompt, 1) for _ in range(ROUNDS))
            whole = statistics.median(_seconds(generate, prompt, TOKENS) for _ in range(ROUNDS))
        answers.append(tokens)
        figures[name] = (1000 * first, (TOKENS - 1) / (whole - first))
        print(f"{folder.name}, {name}: {figures[name]}", file=sys.stderr)
        del generate
    same = [len(set(column)) == 1 for column in zip(*answers, strict=True)]
    return figures | {"same": [*same, False].index(False)}


def table(records: dict[str, dict[str, Any]], speeds: dict[str, dict[str, Any]]) -> Table:
    """A row for the reference in torch, then one per format: its export.json and its `speed`."""
    from intel_ft.host.cpu import cpu_name

    rows: list[tuple[str, ...]] = []
    for name, record in records.items():
        if not rows:
            reference = table_cells(reference_record(record["gate"]))
            rows.append((*reference[:QUALITY_COLUMNS], *[""] * (len(RUNTIMES) + 1)))
        measured = record["gate"]["table"][-1] | {"name": name}
        speeds_of = speeds[name]
        rows.append(
            (
                *table_cells(measured)[:QUALITY_COLUMNS],
                *("{:,.1f} ms, {:,.0f}/s".format(*speeds_of[runtime]) for runtime in RUNTIMES),
                f"{speeds_of['same']} of {TOKENS}",
            )
        )
    data = record["gate"]["data"]
    note = (
        f"{data['examples']} examples of {data['source']}, {data['positions']:,} positions; "
        f"{cpu_name()}, {os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f} at the end."
    )
    return Table((*COLUMNS[:QUALITY_COLUMNS], *RUNTIMES, "same answer"), rows, (note,))


def _prompt(folder: Path) -> list[int]:
    from intel_ft.artifacts.resolve import resolve
    from intel_ft.inference.prompt_template import prompt_template
    from intel_ft.models.tokenizer import load_tokenizer
    from intel_ft.runtimes.language_model import tokenizer_config
    from intel_ft.templates.formats import Message
    from intel_ft.templates.prompt import prompt_tokens

    artifact = resolve(str(folder))
    tokenizer = load_tokenizer(tokenizer_config(artifact))
    template, _ = prompt_template(artifact, tokenizer)
    return prompt_tokens(tokenizer, template, (Message("user", PROMPT),), artifact.system_prompt)


def _tensor(prompt: list[int]) -> Any:
    import numpy as np
    import openvino

    return openvino.Tensor(np.array([prompt], dtype=np.int64))


def _greedy(count: int) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.do_sample = False
    config.max_new_tokens = config.min_new_tokens = count
    return config


def _seconds(generate: Generate, prompt: list[int], count: int) -> float:
    start = time.monotonic()
    generate(prompt, count)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
