"""`intel-ft merge`."""

from intel_ft.cli.options import Json, Output, Source, Trust, show


def run(
    source: Source, output: Output, trust_remote_code: Trust = False, json: Json = False
) -> None:
    """Merge an adapter into a freshly loaded bf16 base, and check that both agree."""
    from intel_ft.export.merge import merge

    show(merge(source, output, trust_remote_code=trust_remote_code), json)
