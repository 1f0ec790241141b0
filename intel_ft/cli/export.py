"""`intel-ft export`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from intel_ft.cli.options import Base, Json, MaxNewTokens, Output, Trust, show
from intel_ft.tables import Table


def run(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="As for merge; several only with --adapter."),
    ],
    output: Output,
    format: Annotated[
        Literal["fp16", "int8", "int4", "nf4", "mxfp4", "auto"],
        typer.Option(help="Precision of the weights; auto is the smallest that passes the gate."),
    ] = "int8",
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the quantization (docs/export.md)."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML file of such settings; --set goes before it.")
    ] = None,
    max_ppl_increase: Annotated[
        str | None, typer.Option(help="Refuse more than this over the bf16 model, such as 1%.")
    ] = None,
    min_agreement: Annotated[
        str | None, typer.Option(help="Refuse less top-1 agreement with it, such as 0.98.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Held-out data to measure on; default is the run's own.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split of it.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Data to calibrate on; default is the run's training data.")
    ] = None,
    generate: Annotated[int, typer.Option(help="Also check this many answers.")] = 0,
    max_new_tokens: MaxNewTokens = 256,
    measure: Annotated[bool, typer.Option(help="Measure on held-out data, if any.")] = True,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Keep adapters apart, for OpenVINO GenAI to apply.")
    ] = False,
    device: Annotated[
        Literal["CPU", "GPU", "NPU"], typer.Option(help="What it is to run on.")
    ] = "CPU",
    base: Base = None,
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Write a model as OpenVINO IR with its tokenizer; an adapter is merged first."""
    from intel_ft.errors import UserError
    from intel_ft.export.adapters import export_adapters
    from intel_ft.export.export import export
    from intel_ft.export.gate import Gate, Limits, share
    from intel_ft.export.settings import for_device, read_settings

    limits = Limits(
        None if max_ppl_increase is None else share(max_ppl_increase, "--max-ppl-increase"),
        None if min_agreement is None else share(min_agreement, "--min-agreement"),
    )
    chosen = for_device(read_settings(settings, set or []), device)
    if adapter:
        if format == "auto" or limits.set:
            raise UserError(
                "--adapter measures each adapter at run time: give one --format, and "
                "no limits of the gate"
            )
        show(
            export_adapters(
                sources,
                output,
                format,
                settings=chosen,
                calibration=calibration,
                device=device,
                base=base,
                trust_remote_code=trust_remote_code,
            ),
            json,
        )
        return
    if len(sources) > 1:
        raise UserError("several models go into one folder only with --adapter")
    report = export(
        sources[0],
        output,
        format,
        settings=chosen,
        calibration=calibration,
        gate=Gate(limits, data, split, generate, max_new_tokens, measure),
        device=device,
        base=base,
        trust_remote_code=trust_remote_code,
    )
    if json:
        show(report, json)
        return
    if report.gate:
        _show_table(report.gate)
    show(vars(report) | {"weights": report.weights.elements, "gate": None}, json)


def _show_table(gate: dict[str, Any]) -> None:
    from intel_ft.export.gate import COLUMNS, cells

    reference = {"name": f"torch, {gate['reference']['dtype']}", **gate["reference"]}
    rows = [cells(reference), *map(cells, gate["table"])]
    used = [i for i in range(len(COLUMNS)) if i == 0 or any(row[i] for row in rows)]
    Table(tuple(COLUMNS[i] for i in used), [tuple(row[i] for i in used) for row in rows]).draw()
