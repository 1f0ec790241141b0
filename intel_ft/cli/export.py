"""`intel-ft export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from intel_ft.cli.options import Base, Json, MaxNewTokens, Output, Trust, show


def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folder of a run, an adapter, a merged model or a base model, or a Hub id. With "
            "--adapter, one or more runs or adapters.",
        ),
    ],
    output: Output,
    precision: Annotated[
        Literal["fp16", "int8", "int4", "nf4", "mxfp4", "auto"],
        typer.Option(
            "--format",
            help="Precision of the weights. auto writes the smallest model that passes the quality "
            "gate.",
        ),
    ] = "int8",
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Quantization setting, such as group_size=64. Repeatable. See docs/export.md.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of quantization settings. Values given with --set override this file."
        ),
    ] = None,
    max_ppl_increase: Annotated[
        str | None,
        typer.Option(
            help="Quality gate: maximum increase of perplexity over the bf16 model, such as 1%. "
            "Default: 1% for --format auto, else no limit."
        ),
    ] = None,
    min_agreement: Annotated[
        str | None,
        typer.Option(
            help="Quality gate: minimum top-1 agreement with the bf16 model, such as 0.98; for a "
            "reward model, minimum share of pairs in the same order. Default: no limit."
        ),
    ] = None,
    max_task_drop: Annotated[
        str | None,
        typer.Option(
            help="Quality gate: maximum drop of the --task score below the bf16 model's, such as "
            "2%; for a reward model, maximum drop of the pair accuracy. Default: no limit."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Score the answers by FILE.py:function (answer, reference), regex:PATTERN, "
            "exact_match or python; lm_eval:NAME runs a task of lm-evaluation-harness. See "
            "docs/export.md.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare with this run or model instead of the one that is exported.",
        ),
    ] = None,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover",
            help="Train the int4 weights on the training data after compression "
            "(quantization-aware training). See docs/export.md.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Validation set to measure on. Default: that of the run."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the validation set to use.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Calibration data. Default: the training data of the run."),
    ] = None,
    generate: Annotated[
        int,
        typer.Option(
            help="Also generate and check answers to this many validation examples. With --task "
            "lm_eval:NAME, also the number of its documents."
        ),
    ] = 0,
    max_new_tokens: MaxNewTokens = 256,
    measure: Annotated[
        bool, typer.Option(help="Measure the quality on the validation set, if there is one.")
    ] = True,
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter",
            help="Export the base model and the adapters separately; OpenVINO GenAI applies the "
            "adapters at run time.",
        ),
    ] = False,
    device: Annotated[
        Literal["CPU", "GPU", "NPU"], typer.Option(help="Device that the model will run on.")
    ] = "CPU",
    base: Base = None,
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Export a model to OpenVINO IR.

    An adapter is merged first.
    """
    from intel_ft import api
    from intel_ft.errors import UserError
    from intel_ft.export.adapters import export_adapters
    from intel_ft.export.gate import Gate, Limits, gate_table, parse_share
    from intel_ft.quantization import for_device, read_settings

    most = None if max_ppl_increase is None else parse_share(max_ppl_increase, "--max-ppl-increase")
    least = None if min_agreement is None else parse_share(min_agreement, "--min-agreement")
    lost = None if max_task_drop is None else parse_share(max_task_drop, "--max-task-drop")
    chosen = read_settings(settings, pairs or [])
    if adapter:
        if precision == "auto":
            raise UserError("--adapter writes one format: give a --format other than auto")
        if recover:
            raise UserError(
                "--recover tunes a merged model: with --adapter, train on the int4 weights "
                "instead (model.base_dtype=int4)"
            )
        gate = Gate(
            limits=Limits(most, least, lost),
            data=data,
            split=split,
            generate=generate,
            max_new_tokens=max_new_tokens,
            measure=measure,
            reference=reference,
            task=task,
        )
        show(
            export_adapters(
                sources,
                output,
                precision,
                settings=for_device(chosen, device),
                calibration=calibration,
                gate=gate,
                device=device,
                base=base,
                trust_remote_code=trust_remote_code,
            ),
            json,
        )
        return
    if len(sources) > 1:
        raise UserError("several models need --adapter: without it, export them one at a time")
    report = api.export(
        sources[0],
        output,
        precision,
        settings=chosen,
        max_ppl_increase=most,
        min_agreement=least,
        max_task_drop=lost,
        task=task,
        reference=reference,
        recover=recover,
        data=data,
        split=split,
        calibration=calibration,
        generate=generate,
        max_new_tokens=max_new_tokens,
        measure=measure,
        device=device,
        base=base,
        trust_remote_code=trust_remote_code,
    )
    if json:
        show(report, json)
        return
    if report.gate:
        gate_table(report.gate).draw()
    show(vars(report) | {"weights": report.weights.elements, "gate": None}, json)
