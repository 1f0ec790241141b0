"""The images' lists of packages are complete and pinned, and their users are nobody special."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
LEFT_OUT = {
    "train": {"torch", "torchvision"},  # torch comes first, with its own dependencies
    "inference": {"torch", "openvino-telemetry"},
}
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(path: Path) -> set[str]:
    lines = path.read_text().splitlines()
    return {canonical(line.split("==")[0]) for line in lines if line and line[0] != "#"}


@pytest.mark.parametrize("which", LEFT_OUT)
def test_a_list_is_pinned_by_the_lock_and_closed(which) -> None:
    listed = names(DOCKER / f"{which}.txt")
    assert listed <= names(ROOT / "requirements.lock")
    for name in sorted(listed):
        try:
            wanted = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # an environment without every extra
            continue
        for one in wanted:
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                assert canonical(one.name) in listed | LEFT_OUT[which], f"{name} needs {one.name}"
    if which == "inference":
        assert not listed & {"torch", "nncf", "optimum", "optimum-intel", "peft", "datasets"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_pinned_and_not_root_and_starts_the_verbs(path) -> None:
    text = path.read_text()
    stages = re.split(r"(?m)^FROM ", text)[1:]
    built = set(re.findall(r"(?m)^FROM .* AS (\w+)$", text))
    for stage in stages:
        image = stage.split()[0]
        assert image in built or re.search(r":\d+\.\d+\.\d+-", image), image
    for stage in stages[1:]:
        assert re.findall(r"(?m)^USER (.*)$", stage)[-1] == "$UID"
    assert 'ENTRYPOINT ["intel-ft"]' in text
    for sources in re.findall(r"(?m)^COPY (?!--from)(.*)$", text):
        for source in sources.split()[:-1]:
            assert (ROOT / source).exists(), source
            top = source.split("/")[0]
            ignored = (ROOT / ".dockerignore").read_text().splitlines()
            assert any(Path(top).match(line[1:]) for line in ignored if line[0] == "!"), source


def test_two_nodes_share_keys_and_work() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    first, second = compose["services"]["node1"], compose["services"]["node2"]
    assert first["volumes"] == second["volumes"]
    assert first["entrypoint"][:3] == ["mpirun", "-hosts", "node1,node2"]
    assert first["environment"]["MASTER_ADDR"] == first["hostname"] == "node1"
    target = first["build"]["target"]
    assert f" AS {target}\n" in (DOCKER / "cpu.Dockerfile").read_text()


def test_an_installed_package_has_every_file() -> None:
    """Images install a wheel, where only Python files come by themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "intel_ft"
    listed = {
        path
        for pattern in project["tool"]["setuptools"]["package-data"]["intel_ft"]
        for path in package.glob(pattern)
    }
    for path in package.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert path in listed, f"{path} is in no wheel"
