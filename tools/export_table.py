"""Every format of docs/export.md made of one run, opened in the three runtimes: its table.

    python tools/export_table.py RUN OUTPUT [--data HELDOUT.jsonl]
    python tools/export_table.py RUN OUTPUT --speed-only

Each format, and each rung of `--format auto`, is exported to OUTPUT/NAME unless it is there; size
and quality are read from its export.json. Then each is opened as Optimum-Intel, OpenVINO GenAI and
OpenVINO Model Server open it, and answers one prompt greedily: milliseconds to the first token, and
tokens a second after it, medians of three. Speeds mean something on a quiet machine alone, so
--speed-only takes them again, of what is there.
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
from intel_ft.export.context import Source, prepare_bench
from intel_ft.export.export import finish, require_packages
from intel_ft.export.gate import COLUMNS, Gate, cells, line
from intel_ft.export.ladder import Candidate, candidates
from intel_ft.export.output import quiet
from intel_ft.export.settings import Settings
from intel_ft.export.try_candidate import attempt
from intel_ft.export.workspace import workspace
from intel_ft.tables import Table

ROUNDS, TOKENS = 3, 64
QUALITY = 6  # of gate.COLUMNS, the first: name, size, and distance from the model

Answer = Callable[[list[int], int], list[int]]
"""Prompt and number of tokens to the greedy tokens after it, exactly so many."""


def main() -> None:
    """Export what is missing, measure, print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run's folder, or a model's")
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", help="held-out examples, where the run has none")
    parser.add_argument("--samples", type=int, default=128, help="calibration examples")
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
    """The rungs of `--format auto`, and the formats that are not among them."""
    walk = candidates("auto", settings)
    return [*walk, *candidates("nf4", settings), *candidates("mxfp4", settings)]


def export_each(run: str, output: Path, formats: list[Candidate], data: str | None) -> None:
    """`intel-ft export run -o output/NAME` of each of `formats` that is not there, with one merge,
    reference and fp16 IR for all of them.
    """
    missing = [one for one in formats if not (output / one.name).is_dir()]
    if not missing:
        return
    artifact, gate, settings = resolve(run), Gate(data=data), formats[0].settings
    source = Source(artifact, None, trust_remote_code=False, allow_pickle=False)
    key = {"run": run, "data": data, "samples": settings.samples}
    with workspace(output / "all", key) as work, quiet():
        bench = prepare_bench(source, work, gate, None, settings)
        for one in missing:
            done = attempt(bench, one)
            print(line(done.row, None), file=sys.stderr, flush=True)
            finish(bench, artifact, [done], gate, "CPU", one.settings, output / one.name)


def optimum(folder: Path) -> Answer:
    """Optimum-Intel's OVModelForCausalLM."""
    import torch
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(folder)

    def answer(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
        )
        return list(found[0, len(prompt) :].tolist())

    return answer


def genai(folder: Path) -> Answer:
    """OpenVINO GenAI's LLMPipeline."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU")
    return lambda prompt, count: list(pipeline.generate(_tensor(prompt), _greedy(count)).tokens[0])


def model_server(folder: Path) -> Answer:
    """What OpenVINO Model Server's LLM node makes of graph.pbtxt: GenAI's pipeline of continuous
    batching on the graph's device and with its plugin_config. (The server has no Python package.)
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
    """Of the IR in `folder` in each runtime: milliseconds to the first token, tokens a second; and
    `same`, how many of TOKENS tokens all of them say before they part.

    Raises IntelFTError where a runtime says another number of tokens than it was asked for.
    """
    prompt = _prompt(folder)
    figures: dict[str, Any] = {}
    answers = []
    for name, open_in in RUNTIMES.items():
        with quiet():
            answer = open_in(folder)
            said = answer(prompt, TOKENS)  # the first call warms up
            if len(said) != TOKENS:
                raise IntelFTError(f"{folder}: {name} said {len(said)} tokens, not {TOKENS}")
            first = statistics.median(_seconds(answer, prompt, 1) for _ in range(ROUNDS))
            whole = statistics.median(_seconds(answer, prompt, TOKENS) for _ in range(ROUNDS))
        answers.append(said)
        figures[name] = (1000 * first, (TOKENS - 1) / (whole - first))
        print(f"{folder.name}, {name}: {figures[name]}", file=sys.stderr)
        del answer
    same = [len(set(tokens)) == 1 for tokens in zip(*answers, strict=True)]
    return figures | {"same": [*same, False].index(False)}


def table(records: dict[str, dict[str, Any]], speeds: dict[str, dict[str, Any]]) -> Table:
    """export.json and `speed` of each format, by its name, below the model in torch."""
    from intel_ft.host.cpu import cpu_name

    rows: list[tuple[str, ...]] = []
    for name, record in records.items():
        if not rows:
            reference = record["gate"]["reference"]
            torch = {"name": f"torch, {reference['dtype']}", **reference}
            rows.append((*cells(torch)[:QUALITY], *[""] * (len(RUNTIMES) + 1)))
        measured = record["gate"]["table"][-1] | {"name": name}
        speeds_of = speeds[name]
        rows.append(
            (
                *cells(measured)[:QUALITY],
                *("{:,.1f} ms, {:,.0f}/s".format(*speeds_of[runtime]) for runtime in RUNTIMES),
                f"{speeds_of['same']} of {TOKENS}",
            )
        )
    data = record["gate"]["data"]
    note = (
        f"{data['examples']} examples of {data['source']}, {data['positions']:,} positions; "
        f"{cpu_name()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the end."
    )
    return Table((*COLUMNS[:QUALITY], *RUNTIMES, "same answer"), rows, (note,))


def _prompt(folder: Path) -> list[int]:
    from intel_ft.artifacts.resolve import resolve
    from intel_ft.data.formats import Message
    from intel_ft.data.prompt import prompt_tokens
    from intel_ft.inference.prompt_template import prompt_template
    from intel_ft.models.tokenizer import load_tokenizer
    from intel_ft.runtimes.language_model import tokenizer_config

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


def _seconds(answer: Answer, prompt: list[int], count: int) -> float:
    start = time.monotonic()
    answer(prompt, count)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
