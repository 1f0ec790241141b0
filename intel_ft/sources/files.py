"""Which files are the data: those of a folder by their types, and by the split that they belong to.

Files are assigned to splits as `datasets` does: by the words train,
validation, test and their other forms in the names of folders and files.
"""

import glob
import json
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from intel_ft.errors import UserError

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""File types, and the module of `datasets` that reads each."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
SUPPORTED = f"{', '.join(BUILDERS)}, also with {', '.join(COMPRESSED)}"

# The keywords of datasets.data_files.
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _KEYWORDS.items() for word in words}
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(?P<split>\w+)-[0-9]{5}-of-[0-9]{5}\b")
_ABOUT_DATA = ("dataset_info", "dataset_infos", "dataset_dict", "state", "config")
_PROSE = {"readme", "license", "licence", "notice", "copying", "citation", "changelog"}
_REMEDIES = {
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".7z": "unpack it",
    ".xlsx": "save it as CSV",
    ".xls": "save it as CSV",
    ".ods": "save it as CSV",
    ".pkl": "write it as JSON lines",
    ".yaml": "write it as JSON lines",
    ".yml": "write it as JSON lines",
}


@dataclass(frozen=True)
class DataFiles:
    """The files of each split, in the order in which they are read.

    unsplit: files whose names belong to no split although other files' names do.
    """

    root: Path
    splits: dict[str, tuple[Path, ...]]
    unsplit: tuple[Path, ...] = ()

    def find(self, split: str) -> str | None:
        """The split's name here: `split` itself or another word for it, such as dev; else None."""
        return next((n for n in (split, _SPLIT_OF_WORD.get(split)) if n in self.splits), None)

    def describe(self, splits: Iterable[str]) -> str:
        """These splits with their files, as text."""
        return ", ".join(f"{name} ({_names(self.splits[name], self.root)})" for name in splits)

    def describe_all_but(self, splits: Collection[str]) -> str:
        """What is left if `splits` are read, as text; empty if that is nothing."""
        parts = [self.describe([name]) for name in self.splits if name not in splits]
        if self.unsplit:
            parts.append(f"no split ({_names(self.unsplit, self.root)})")
        return ", ".join(parts)


def data_type(file: Path) -> str | None:
    """The file's type, such as `.jsonl` or `.jsonl.gz`; None if it is not supported."""
    suffix = file.suffix.lower()
    if suffix in COMPRESSED:
        inner = Path(file.stem).suffix.lower()
        return inner + suffix if inner in BUILDERS else None
    return suffix if suffix in BUILDERS else None


def inner_type(file: Path) -> str:
    """The type of a supported file without its compression, such as `.jsonl`."""
    return f".{str(data_type(file)).split('.')[1]}"


def is_pattern(path: Path) -> bool:
    """Whether this is a pattern such as `data/*.jsonl`, and not a path that exists."""
    return glob.has_magic(str(path)) and not path.exists()


def find_files(path: Path) -> DataFiles:
    """The data file `path`, or those of the folder `path`, by split; a file alone is split train.

    All files that a pattern matches are split train, too: whoever writes a pattern names them.

    A folder's files are those that `datasets` saved there or that its README.md declares, else
    those in it, in its folder data/, and in folders that are named as a split. Where no name says a
    split, all files are split train. Raises UserError where there are none, or where a name says
    two splits.
    """
    if path.is_file():
        if data_type(path) is None:
            raise UserError(f"{path}: {_unknown_type(path)}")
        return DataFiles(path.parent, {"train": (path,)})
    if is_pattern(path):
        return _matching(path)
    if not path.is_dir():
        raise UserError(f"{path}: is neither a file nor a folder: write the data to a file")
    if listed := _saved_by_datasets(path) or _declared(path):
        return DataFiles(path, listed)
    found: dict[str | None, list[Path]] = {}
    for file in _candidates(path):
        found.setdefault(_split_of(file, path), []).append(file)
    unsplit = tuple(found.pop(None, ()))
    if not found and not unsplit:
        raise UserError(f"{path}: {_nothing_found(path)}")
    if not found:
        here = tuple(file for file in unsplit if file.parent == path) or unsplit
        below = tuple(file for file in unsplit if file not in here)
        return DataFiles(path, {"train": here}, below)
    return DataFiles(path, {str(name): tuple(files) for name, files in found.items()}, unsplit)


def require_one_type(path: Path, files: tuple[Path, ...]) -> str:
    """The type of all `files`. Raises UserError if they differ."""
    types = {str(data_type(file)) for file in files}
    if len(types) > 1:
        names = _names(files, path, 8)
        raise UserError(
            f"{path}: the folder has data files of several types ({names}): name one file, or keep"
            " only files of one type in a folder"
        )
    return types.pop()


def _matching(pattern: Path) -> DataFiles:
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    files = tuple(file for file in found if file.is_file() and not _is_about_data(file))
    if not files:
        raise UserError(f"{pattern}: no file matches this pattern: check its folder and its type")
    for file in files:
        if data_type(file) is None:
            raise UserError(f"{pattern}: matches {file}, which has an {_unknown_type(file)}")
    return DataFiles(Path(os.path.commonpath([file.parent for file in files])), {"train": files})


def _candidates(folder: Path) -> list[Path]:
    files = _files_in(folder)
    for below in _folders_in(folder):
        if below.name == "data":
            files += _files_in(below)
            for deeper in _folders_in(below):
                files += _files_in(deeper) if len(_words(deeper)) == 1 else []
        elif len(_words(below)) == 1:
            files += _files_in(below)
    return files


def _files_in(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.iterdir())
        if not file.name.startswith((".", "cache-"))
        and data_type(file) is not None
        and file.is_file()
        and not _is_about_data(file)
    ]


def _folders_in(folder: Path) -> list[Path]:
    return [
        below
        for below in sorted(folder.iterdir())
        if below.is_dir() and not below.name.startswith((".", "__"))
    ]


def _is_about_data(file: Path) -> bool:
    """Whether this is a license, a readme or a description, which lies beside data."""
    stem = file.name.split(".")[0].lower()
    if file.suffix.lower() == ".json":
        return stem in _ABOUT_DATA
    return file.suffix.lower() == ".txt" and _SEPARATORS.split(stem)[0] in _PROSE


def _split_of(file: Path, folder: Path) -> str | None:
    """The split that the names say, the folders' first; None if they say none."""
    if (shard := _SHARD.match(file.name)) and shard["split"].split("_")[0] in _SPLIT_OF_WORD:
        return shard["split"]  # verbatim, such as train_sft
    relative = file.relative_to(folder)
    stem = file.name[: -len(str(data_type(file)))]
    for part in (*map(Path, relative.parent.parts), Path(stem)):
        said = _words(part)
        if len(said) > 1:
            raise UserError(
                f"{file}: the name contains the splits {' and '.join(sorted(said))}: rename it, or"
                " set the file itself in the config instead of its folder"
            )
        if said:
            return said.pop()
    return None


def _words(path: Path) -> set[str]:
    words = _SEPARATORS.split(path.name.lower())
    return {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}


def _saved_by_datasets(path: Path) -> dict[str, tuple[Path, ...]] | None:
    """The files of a folder that save_to_disk of `datasets` wrote; None for another folder."""
    try:
        if (path / "dataset_dict.json").is_file():
            names = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            return {str(name): _listed(path / str(name)) for name in names}
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            return {"train": _listed(path)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: looks like a folder written by save_to_disk, but parts are missing or damaged"
            f" ({type(error).__name__}: {error}): write it again"
        ) from error
    return None


def _declared(path: Path) -> dict[str, tuple[Path, ...]] | None:
    """The files that a Hub repository's README.md declares; None where it declares none."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8")
        header = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
        configs = [c for c in header["configs"] if c.get("data_files")] if header else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, yaml.YAMLError):
        return None  # no README, or one for people
    if not configs:
        return None
    default = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    if len(configs) > 1 and not default:
        names = _list([str(config.get("config_name")) for config in configs], 8)
        raise UserError(f"{path}: README.md declares several datasets ({names}): name their files")
    declared = (default or configs)[0]["data_files"]
    if not (isinstance(declared, list) and declared and isinstance(declared[0], dict)):
        declared = [{"split": "train", "path": declared}]
    found = {}
    for entry in declared:
        patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        files = [file for pattern in patterns for file in sorted(path.glob(str(pattern)))]
        found[str(entry["split"])] = tuple(f for f in dict.fromkeys(files) if data_type(f))
    return {split: files for split, files in found.items() if files} or None


def _listed(folder: Path) -> tuple[Path, ...]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    files = tuple(folder / str(entry["filename"]) for entry in state["_data_files"])
    for file in files:
        file.stat()  # raises FileNotFoundError with the file's name
    return files


def _unknown_type(path: Path) -> str:
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    if suffix in COMPRESSED and inner not in _REMEDIES:
        return f"the name does not say the type: rename it, such as {path.stem}.jsonl{suffix}"
    remedy = _REMEDIES.get(inner if suffix in COMPRESSED else suffix)
    kind = suffix or "(no extension)"
    return f"unknown file type {kind}: {f'{remedy}; ' if remedy else ''}supported are {SUPPORTED}"


def _nothing_found(path: Path) -> str:
    with_data = [below.name for below in _folders_in(path) if _candidates(below)]
    if with_data:
        return f"no data files in this folder, but in {_list(with_data, 8)}: name one of them"
    others = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _REMEDIES]
    if others:
        return f"no data files in this folder: {others[0].name} has an {_unknown_type(others[0])}"
    return f"no data files in this folder: supported are {SUPPORTED}"


def _names(files: Iterable[Path], folder: Path, most: int = 3) -> str:
    return _list([str(file.relative_to(folder)) for file in files], most)


def _list(names: list[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
