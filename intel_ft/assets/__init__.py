"""The model and data that ship with the package, found by their bare names."""

from pathlib import Path

MODEL = "tiny-python-llama"
TRAIN = "docstring-to-python/train.jsonl"
HELDOUT = "docstring-to-python/heldout.jsonl"


def resolve(source: str) -> str:
    """`source`, or the path of the shipped asset of that name where no such local path exists.

    "tiny-python-llama" and "docstring-to-python/train.jsonl" are names of assets.
    """
    asset = Path(__file__).parent / source
    if source and not Path(source).exists() and asset.exists():
        return str(asset)
    return source
