"""Builds the shipped docstring-to-Python dataset from this Python's standard library.

    python tools/build_dataset.py

The same Python version writes the same files, byte for byte. Rows are split by module, not at
random: functions of one module resemble each other, so a validation set with functions from the
training modules would give a loss that is too low. `tools/pretrain_tiny.py` uses the same
`heldout`, so the shipped base model has not seen the validation modules either.
"""

import argparse
import ast
import copy
import hashlib
import inspect
import json
import platform
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "intel_ft" / "assets"
HELDOUT_FRACTION = 0.06  # of the modules; the fractions of rows and bytes are only similar
DOCSTRING_CHARACTERS = range(15, 401)
SOURCE_LINES = range(3, 41)  # including the docstring
# Tests, and data that is stored in Python files.
TEST_PARTS = {"test", "tests", "idle_test"}
SKIPPED_PARTS = {"site-packages", "__pycache__", "encodings", "pydoc_data", "lib-dynload"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def group_of(module: str) -> str:
    """The name whose hash decides whether a module belongs to the validation set.

    `heapq` and `test.test_heapq` have the same name, `decimal` and `_pydecimal` as well. The test
    of a submodule (`test.test_urllib2`) has the name of the module that it starts with (`urllib`).
    """
    first, *rest = module.split(".")
    is_test = first == "test" and bool(rest)
    name = rest[0] if is_test else first
    for prefix in ("test_", "_py"):
        name = name.removeprefix(prefix)
    name = name.strip("_")
    if is_test and name not in sys.stdlib_module_names:
        prefixes = [module for module in sys.stdlib_module_names if name.startswith(module)]
        name = max((p for p in prefixes if len(p) > 2), key=len, default=name)
    return name


def heldout(module: str) -> bool:
    """Whether a module belongs to the validation set; the same answer on every machine."""
    digest = hashlib.sha256(group_of(module).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELDOUT_FRACTION


def library_files() -> Iterator[tuple[str, Path]]:
    """Yield (dotted module name, path) of the standard library's sources, tests included.

    Excluded: `SKIPPED_PARTS`, and files generated when this Python was built (`_sysconfigdata*`,
    `config-*`), which contain paths of the build machine.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_PARTS.isdisjoint(parts) and not parts[0].startswith(("_sysconfig", "config-")):
            yield ".".join(parts).removesuffix(".__init__"), path


def read_python(path: Path) -> str | None:
    """The source text, decoded as it declares; None if it is not valid Python."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return None
    return source


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield (qualified name, node) of functions and methods, without nested functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions_of(node, f"{prefix}{node.name}.")
        elif isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from functions_of(node, prefix)


def is_placeholder(statement: ast.stmt) -> bool:
    """Whether a statement only stands for a missing implementation."""
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id="NotImplementedError")):
            return True
        case ast.Raise(exc=ast.Call(func=ast.Name(id="NotImplementedError"))):
            return True
    return False


def dedented_source(node: Function, lines: list[str]) -> str | None:
    """The function's source, dedented; None if dedenting would change what it does.

    Dedenting changes the value of multi-line strings. In the docstring the indentation may change;
    everything else must parse to the same tree as before.
    """
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = lines[first - 1 : node.end_lineno]
    indent = lines[first - 1][: node.col_offset]
    if any(line.strip() and not line.startswith(indent) for line in kept):
        return None
    source = "".join(line.removeprefix(indent) if line.strip() else "\n" for line in kept)
    source = source.rstrip() + "\n"
    try:
        parsed = ast.parse(source).body
    except SyntaxError:
        return None
    same = len(parsed) == 1 and with_clean_docstring(parsed[0]) == with_clean_docstring(node)
    return source if same else None


def with_clean_docstring(node: ast.AST) -> str:
    """The dump of a function's tree, with its docstring's indentation removed."""
    copied = copy.deepcopy(node)
    constant = copied.body[0].value  # type: ignore[attr-defined]
    constant.value = inspect.cleandoc(constant.value)
    return ast.dump(copied)


def row_of(module: str, name: str, node: Function, lines: list[str]) -> dict[str, str] | None:
    """The dataset row of one function; None if it is too short, too long or not implemented."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring is None or all(is_placeholder(statement) for statement in node.body[1:]):
        return None
    description = inspect.cleandoc(docstring).strip()
    source = dedented_source(node, lines)
    if len(description) not in DOCSTRING_CHARACTERS or source is None:
        return None
    if source.count("\n") not in SOURCE_LINES:
        return None
    kind = "coroutine" if isinstance(node, ast.AsyncFunctionDef) else "function"
    kind = "method" if "." in name else kind
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{name}({ast.unparse(node.args)}){returns}"
    return {
        "instruction": f"Write the Python {kind} `{signature}`.\n\n{description}",
        "output": source,
        "module": module,
        "name": name,
    }


def library_rows() -> Iterator[dict[str, str]]:
    """Yield the rows of every module that is not a test, in the order of the module names."""
    for module, path in library_files():
        source = read_python(path)
        if source is None or not TEST_PARTS.isdisjoint(module.split(".")):
            continue
        lines = source.splitlines(keepends=True)
        for name, node in functions_of(ast.parse(source)):
            row = row_of(module, name, node, lines)
            if row is not None:
                yield row


def split(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and validation rows without duplicate outputs; training rows take precedence."""
    seen: set[str] = set()
    parts: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for row in sorted(rows, key=lambda row: heldout(row["module"])):
        if row["output"] not in seen:
            seen.add(row["output"])
            parts[heldout(row["module"])].append(row)
    return parts


CARD = """\
---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
language:
- en
task_categories:
- text-generation
tags:
- code
- python
size_categories:
- {size}
---

# Docstring to Python

Functions and methods of the standard library of Python {version}: `instruction` has the signature
and the docstring, `output` the whole source, dedented, and `module` and `name` tell where it comes
from. Written by `tools/build_dataset.py`, which writes the same bytes on every machine with the
same Python.

| file | rows | modules |
|---|---:|---:|
| `train.jsonl` | {train_rows} | {train_modules} |
| `heldout.jsonl` | {heldout_rows} | {heldout_modules} |

Included: functions and methods, at module or class level, with a docstring of {doc_min} to
{doc_max} characters and {src_min} to {src_max} lines of source. Excluded: tests, encoding tables,
functions without an implementation (`pass`, `raise NotImplementedError`), repeated sources.

The split is by top-level module: a module belongs to the validation set (`heldout.jsonl`) if the
SHA-256 of its name, read as a fraction, is below {fraction}. `_pydecimal` counts as `decimal`,
`test.test_heapq` as `heapq`. No module and no output is in both files, and the model in
`tiny-python-llama` was pretrained without the modules of the validation set.

Modules of the validation set: {names}.

The text belongs to the Python Software Foundation and its contributors, under the PSF licence
version 2; a few modules have further notices, listed at the link above.
"""


def card(train: list[dict[str, str]], validation: list[dict[str, str]]) -> str:
    """The dataset card for these rows."""
    modules = [{row["module"] for row in rows} for rows in (train, validation)]
    return CARD.format(
        size="1K<n<10K" if len(train) + len(validation) < 10_000 else "10K<n<100K",
        version=platform.python_version(),
        train_rows=len(train),
        train_modules=len(modules[0]),
        heldout_rows=len(validation),
        heldout_modules=len(modules[1]),
        doc_min=DOCSTRING_CHARACTERS.start,
        doc_max=DOCSTRING_CHARACTERS.stop - 1,
        src_min=SOURCE_LINES.start,
        src_max=SOURCE_LINES.stop - 1,
        fraction=HELDOUT_FRACTION,
        names=", ".join(f"`{name}`" for name in sorted({group_of(m) for m in modules[1]})),
    )


def main() -> None:
    """Build, check and write the two files and the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS / "docstring-to-python")
    output: Path = parser.parse_args().output

    train, validation = split(list(library_rows()))
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("heldout", validation)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / f"{name}.jsonl").write_text(text, encoding="utf-8")
        modules = {row["module"] for row in rows}
        print(f"{name}: {len(rows)} rows, {len(modules)} modules, {len(text.encode()):,} bytes")
    (output / "README.md").write_text(card(train, validation), encoding="utf-8")

    for field, key in (("module", group_of), ("output", str)):
        shared = {key(row[field]) for row in train} & {key(row[field]) for row in validation}
        print(f"{field}s in both sets: {len(shared)}")
        if shared:
            raise SystemExit(f"these are in both sets: {sorted(shared)[:5]}")


if __name__ == "__main__":
    main()
