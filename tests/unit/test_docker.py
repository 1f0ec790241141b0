"""The images' lists of packages are complete and pinned, and their users are not root."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PATH = f"{os.environ['PATH']}:/usr/sbin"
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
            requirements = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # an environment without every extra
            continue
        for needed in requirements:
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonical(needed.name) in listed | LEFT_OUT[which], f"{name}: {needed.name}"
    if which == "train":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        direct = {canonical(Requirement(text).name) for text in project["dependencies"]}
        assert direct <= listed | LEFT_OUT[which]
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


@pytest.mark.skipif(shutil.which("sshd", path=PATH) is None, reason="sshd is missing")
def test_the_workers_of_an_mpi_job_have_an_sshd_that_takes_the_operators_keys() -> None:
    """It mounts id_rsa (ECDSA, in OpenSSL's form), id_rsa.pub and authorized_keys, and no more."""
    spec = yaml.safe_load((ROOT / "launch/k8s-mpijob.yaml").read_text())["spec"]
    worker = spec["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    text = (DOCKER / "cpu.Dockerfile").read_text()
    target = text.split(f" AS {worker['image'].partition(':')[2]}\n")[1]
    source = re.search(rf"(?m)^COPY (\S+) {worker['command'][-1]}$", target)
    assert source is not None, "the image has no such configuration"
    config = (ROOT / source[1]).read_text()
    assert f"Port {worker['readinessProbe']['tcpSocket']['port']}\n" in config
    client = (DOCKER / "ssh/client.conf").read_text()
    assert "IdentityFile ~/.ssh/id_rsa\n" in client and "Port 2222\n" in client
    with TemporaryDirectory() as mount:  # pytest's own folders are closed to other users
        settings = sshd_reads(config.replace(spec["sshAuthMountPath"], mount), Path(mount))
        assert f"hostkey {mount}/id_rsa\n" in settings
        assert f"authorizedkeysfile {mount}/authorized_keys\n" in settings


def sshd_reads(config: str, mount: Path) -> str:
    """The settings that sshd, run by an ordinary user, reads from a configuration."""
    key = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-m", "PEM", "-N", ""]
    subprocess.run([*key, "-f", mount / "id_rsa"], check=True)
    root = os.geteuid() == 0
    if root:  # as the operator's: root's, readable for all
        mount.chmod(0o755)
        (mount / "id_rsa").chmod(0o644)
    (mount / "sshd.conf").write_text(config)
    command = [shutil.which("sshd", path=PATH), "-T", "-f", mount / "sshd.conf"]
    user = 65534 if root else None
    done = subprocess.run(command, capture_output=True, text=True, check=False, user=user)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


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
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
            assert path in listed, f"{path} is in no wheel"
