"""The card's sections about the export: quantization, run-time adapters, the gate; called from
hub.card.
"""

from typing import Any

from intel_ft.hub.card_table import number, percent, table
from intel_ft.hub.metadata import kept_row
from intel_ft.hub.records import Records

_GATE = (
    ("", "name", str),
    ("MB", "megabytes", number),
    ("perplexity", "perplexity", number),
    ("increase", "ppl_increase", percent),
    ("KL, nats", "kl", number),
    ("same token", "agreement", percent),
    ("exact match", "exact_match", percent),
    ("first token, ms", "first_token_ms", number),
    ("token/s", "tokens_per_s", number),
)


def quantization(records: Records) -> str:
    """How the weights are stored, as the IR itself says; empty where there is no IR."""
    weights = records.weights
    if weights is None:
        return ""
    total = sum(weights.elements.values())
    rows = [("bits of most weights", number(weights.bits))]
    if weights.mode:
        rows.append(("mode", weights.mode))
    if weights.group_size is not None:
        channel = weights.group_size == -1
        rows.append(
            ("group size", "one scale a channel" if channel else number(weights.group_size))
        )
    ratio = ((records.export or {}).get("quantization") or {}).get("ratio")
    if ratio is not None:
        rows.append(("share of layers in these bits", percent(ratio)))
    rows += [
        (f"numbers stored as {kind}", f"{number(count)} ({percent(count / total)})")
        for kind, count in sorted(weights.elements.items(), key=lambda item: -item[1])
    ]
    text = "## Quantization\n\nAs read from the model file itself.\n\n" + table(("", ""), rows)
    export = records.export or {}
    if (recipe := export.get("recipe")) and recipe["used"]:
        text += f"\n\nWith Optimum-Intel's tuned recipe for `{recipe['id']}`."
    if calibration := export.get("calibration"):
        text += (
            f"\n\nCalibrated on {number(calibration['samples'])} samples "
            f"({number(calibration['tokens'])} tokens) of {calibration['source']}."
        )
    return text


def adapters(records: Records) -> str:
    """The adapters beside a base that are applied at run time, and how true they come out."""
    found = (records.export or {}).get("adapters")
    if not found:
        return ""
    head = ("", "file", "r", "lora_alpha", "alpha for GenAI", "same token", "without it")
    rows = [
        (
            one["name"],
            one["file"],
            *(number(one[key]) for key in ("r", "lora_alpha", "alpha")),
            *(percent(one[key]) for key in ("top1", "top1_without")),
        )
        for one in found
    ]
    return (
        "## Adapters\n\nThe model file is the base alone; each adapter is applied when it runs. "
        "Same token: where base and adapter at run time and in training's own engine say the same "
        "likeliest token.\n\n" + table(head, rows)
    )


def quality(records: Records, files: set[str]) -> str:
    """What the gate measured, every candidate of it; empty where nothing was measured."""
    gate = (records.export or {}).get("gate")
    if not gate:
        return ""
    kept, data, reference = kept_row(records), gate["data"], gate["reference"]
    columns = [
        column for column in _GATE if any(row.get(column[1]) is not None for row in gate["table"])
    ]
    rows = [
        tuple(_cell(row, key, form) for _, key, form in columns)
        for row in ({"name": f"reference ({reference['dtype']})", **reference}, *gate["table"])
    ]
    text = (
        "## Quality\n\n"
        f"Against the unquantized model ({reference['dtype']}) on "
        f"{number(data['examples'])} held-out examples ({number(data['positions'])} positions) of "
        f"{data['source']}. This repository holds `{kept['name']}`.\n\n"
        + table(tuple(label for label, _, _ in columns), rows)
    )
    limits = gate["limits"]
    said = [
        f"a perplexity increase of at most {percent(limits['max_ppl_increase'])}"
        if limits.get("max_ppl_increase") is not None
        else "",
        f"the same token at {percent(limits['min_agreement'])} of positions at least"
        if limits.get("min_agreement") is not None
        else "",
    ]
    if any(said):
        text += f"\n\nAsked for: {' and '.join(filter(None, said))}."
    if cpu := (records.export or {}).get("cpu"):
        text += f"\n\nSpeeds, where given, on {cpu}."
    if gate.get("plot") in files:
        text += f"\n\n![size against quality]({gate['plot']})"
    return text


def _cell(row: dict[str, Any], key: str, form: Any) -> str:
    value = row.get(key)
    return "" if value is None else str(form(value))
