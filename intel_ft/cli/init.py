"""`intel-ft init`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from intel_ft.cli import options


def run(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="Recipe to copy. Leave it out to list all recipes."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Config of Axolotl, LLaMA-Factory, TRL or Transformers to translate."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write. Default: RECIPE.yaml, or, with --from A.yaml, A.intel-ft.yaml.",
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="With --from: number of GPUs the config was written for.")
    ] = 1,
    json: options.Json = False,
) -> None:
    """Create a config from a recipe or from another trainer's config.

    Without arguments, lists the recipes.
    """
    from intel_ft.errors import UserError

    if recipe and source:
        raise UserError("init takes either a recipe or --from FILE, not both")
    if source:
        _translate(source, output or Path(f"{source.stem}.intel-ft.yaml"), devices, json)
    elif recipe:
        _copy(recipe, output or Path(f"{recipe}.yaml"), json)
    elif output:
        raise UserError("init -o FILE needs a recipe to copy, or --from FILE to translate")
    else:
        _list(json)


def _list(json: bool) -> None:
    from intel_ft.recipes.shipped import recipes

    shipped = recipes()
    if json:
        options.show({"recipes": [dataclasses.asdict(recipe) for recipe in shipped]}, True)
        return
    width = max(len(recipe.name) for recipe in shipped)
    for recipe in shipped:
        typer.echo(f"{recipe.name:<{width}}  {recipe.summary}")
    typer.echo("\nCopy one: intel-ft init dolly-lora -o run.yaml")


def _copy(recipe: str, output: Path, json: bool) -> None:
    from intel_ft.recipes.shipped import copy_recipe

    copy_recipe(recipe, output)
    if json:
        options.show({"recipe": recipe, "written": str(output)}, True)
    else:
        typer.echo(f"{output} written. Next: intel-ft validate {output}")


def _translate(source: Path, output: Path, devices: int, json: bool) -> None:
    from intel_ft.files import write_text
    from intel_ft.recipes.importer import translate
    from intel_ft.recipes.shipped import refuse_to_overwrite

    refuse_to_overwrite(output)
    result = translate(source, devices)
    write_text(output, result.to_yaml())
    if json:
        options.show(result.facts() | {"written": str(output)}, True)
        return
    for line in result.lines():
        typer.echo(line)
    typer.echo(f"\n{output} written. Next: intel-ft validate {output}")
