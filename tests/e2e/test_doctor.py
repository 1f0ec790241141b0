"""`intel-ft doctor` as a user runs it.

In a control group, with oneDNN restricted, with a torch that cannot be imported, without any
package, and on hosts that differ.
"""

import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from support import hosts, limits

SCRIPTS = Path(sys.executable).parent
DOCTOR = [SCRIPTS / "intel-ft", "doctor"]


def doctor(*arguments, start=(), **environment):
    done = subprocess.run(
        [*start, *DOCTOR, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def seen(report, level):
    return [finding["seen"] for finding in report["findings"] if finding["level"] == level]


def test_in_a_control_group_of_one_core_and_2_gib_with_onednn_restricted():
    try:
        with limits.limited(1, 2**31) as start:
            done = doctor("--json", start=start, ONEDNN_MAX_CPU_ISA="AVX512_CORE")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    facts, notes = report["facts"], seen(report, "note")
    assert (facts["host"]["quota"], facts["host"]["usable"]) == (1, 1)
    assert facts["host"]["memory_limit"] == 2 and facts["host"]["available"] < 2
    decisions = {made["name"]: made["value"] for made in facts["runtime"]["decisions"]}
    assert decisions["backend.threads"] == "1" and facts["executed"]["threads"] == 1
    assert any("cores can be used: the control group allows 1" in note for note in notes)
    assert any("the control group allows 2.0 of " in note for note in notes)
    assert any("GiB of memory are available" in warning for warning in seen(report, "warning"))
    ran = {product["dtype"]: product for product in facts["executed"]["products"]}
    assert all(product["rate"] > 0.05 for product in ran.values())  # int8 without dot products
    if "avx512_bf16" not in facts["instructions"]["advertised"]:
        pytest.skip("nothing to hold back on this CPU")
    unused = [text for text in seen(report, "warning") if "the CPU advertises" in text]
    assert len(unused) == 2, report["findings"]
    assert all("ONEDNN_MAX_CPU_ISA=AVX512_CORE disables it" in text for text in unused)
    assert decisions["model.dtype"] == "float32"  # as a run would choose


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (limits.ILLEGAL, "cannot be imported: SIGILL"),
        ("raise OSError('libgomp.so.1: cannot open')", "OSError: libgomp.so.1: cannot open"),
    ],
)
def test_a_torch_that_cannot_be_imported(tmp_path, code, reason):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(code)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = doctor(PYTHONPATH=path, HF_TOKEN="hf_secret")
    assert done.returncode == 3
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ERROR    torch: ")]
    assert reason in line
    assert "hf_secret" not in done.stdout + done.stderr


def test_only_what_the_command_line_needs_is_installed(tmp_path):
    """An environment with typer and its dependencies."""
    venv.create(tmp_path / "bare")
    (packages,) = (tmp_path / "bare/lib").glob("python*/site-packages")
    needed = ("click", "rich", "shellingham", "pygments", "markdown_it", "mdurl", "annotated_doc")
    for name in (*needed, "typer", "typing_extensions", "intel_ft"):
        if (spec := importlib.util.find_spec(name)) is not None:
            path = Path(str(spec.origin))
            path = path.parent if path.name == "__init__.py" else path
            (packages / path.name).symlink_to(path)
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [tmp_path / "bare/bin/python", "-m", "intel_ft", "doctor", "--json"],
        env=bare,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    errors = seen(json.loads(done.stdout), "error")
    assert [text.partition(":")[0] for text in errors] == [
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "datasets",
    ]


@pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))
def test_hosts_that_differ(tmp_path):
    """torch is broken on both, so that they finish soon; node2 has another Transformers."""
    (tmp_path / "first/torch").mkdir(parents=True)
    (tmp_path / "first/torch/__init__.py").write_text("raise ImportError('no torch here')")
    (tmp_path / "hosts").write_text("node1\nnode2\nnode9\n")
    path = f"/run/only-here:{tmp_path / 'first'}:{os.environ.get('PYTHONPATH', '')}"
    other = "/run/only-here/transformers-4.57.0.dist-info"
    put = f"mkdir -p {other}; printf 'Name: transformers\\nVersion: 4.57.0\\n' > {other}/METADATA"
    with hosts.cluster(tmp_path / "cluster", 2) as cluster:
        cluster.hosts[1].run("sh", "-c", put)
        process = cluster.hosts[0].start(
            [*DOCTOR, "--hosts", "hosts", "--json"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    report = json.loads(out)
    assert list(report["hosts"]) == ["node1", "node2"]
    detail = report["differences"]["software.transformers"]
    assert list(detail.values()) == [["node1"], ["node2"]]
    assert list(detail)[1] == "4.57.0 is too old: at least 5.5 is required"
    errors = seen(report, "error")
    assert any("unreachable host: node9" in text for text in errors)
    assert any("hosts differ in software.transformers" in text for text in errors)
