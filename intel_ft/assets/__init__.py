"""The model and data that ship with the package, found by their names."""

from pathlib import Path

MODEL = "tiny-python-llama"
TRAIN = "docstring-to-python/train.jsonl"
HELDOUT = "docstring-to-python/heldout.jsonl"


def resolve(source: str) -> str:
    """`source`, or the path of the asset of that name if there is no local path `source`.

    Names of assets are for example "tiny-python-llama" and "docstring-to-python/train.jsonl".
    """
    asset = Path(__file__).parent / source
    if source and not Path(source).exists() and asset.exists():
        return str(asset)
    return source
