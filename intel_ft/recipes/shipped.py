"""The recipes in configs/: lists and copies them.

`intel_ft/assets/configs` is a link to the repository's configs/, so that the build backend packs
the same files into the wheel as package data.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from intel_ft import assets
from intel_ft.errors import UserError
from intel_ft.files import write_text

FOLDER = Path(assets.__file__).parent / "configs"


@dataclass(frozen=True)
class Recipe:
    """A file in configs/. `summary` is the first line of its opening paragraph."""

    name: str
    summary: str
    model: str
    data: str
    method: str


def recipes() -> list[Recipe]:
    """Every recipe, sorted by name."""
    return [_read(path) for path in sorted(FOLDER.glob("*.yaml"))]


def copy_recipe(name: str, output: Path) -> None:
    """Write recipe `name` to `output`, and put the new path into the commands in its comments.

    Raises UserError if there is no such recipe or `output` exists.
    """
    names = [recipe.name for recipe in recipes()]
    if name not in names:
        raise UserError(f"{name}: no such recipe: choose one of {', '.join(names)}")
    refuse_to_overwrite(output)
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    write_text(output, text.replace(f"configs/{name}.yaml", str(output)))


def refuse_to_overwrite(output: Path) -> None:
    """Raise UserError if `output` exists."""
    if output.exists():
        raise UserError(f"{output} already exists: choose another file with -o, or remove it")


def _read(path: Path) -> Recipe:
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    paragraph = re.search(r"^#\n# (.*)", text, re.MULTILINE)
    return Recipe(
        path.stem,
        paragraph[1] if paragraph else "",
        values["model"]["name_or_path"],
        str(values["data"]["train"]),
        values["method"].get("name", "lora"),
    )
