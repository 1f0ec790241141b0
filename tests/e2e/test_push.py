"""`intel-ft push` with the real client against a local server that speaks the Hub's HTTP API.

What it sends, and one line with the right exit code for everything that can go wrong.
"""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.harness import Result
from support.hub_fixtures import HOST, make_run
from support.hub_server import SIGNATURE, TOKEN, Fault, Hub, Repository

from intel_ft.artifacts.provenance import Provenance

REPO = "someone/tiny-tuned"
SENT = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "intel_ft.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
IMPATIENT = (
    "import sys, intel_ft.hub.client as client; client.SILENCE_SECONDS = 1.0;"
    "sys.argv[0] = 'intel-ft'; from intel_ft.cli.main import main; main()"
)
STORAGE = "PUT /storage/"
SCRIPT = Path(sys.executable).parent / "intel-ft"


@dataclass
class Pushed:
    """The outcomes of one or more pushes to one Hub, and that Hub afterwards."""

    hub: Hub
    results: list[Result]

    @property
    def last(self) -> Result:
        return self.results[-1]


def environment(run: Path, hub: Hub | None) -> dict[str, str]:
    """A user's, with a token."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",  # nothing listens there
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(run.parent / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }


def push(run: Path, hub: Hub | None, *options: str, impatient: bool = False, **env) -> Result:
    """Run the installed `intel-ft push` to its end."""
    command = [sys.executable, "-c", IMPATIENT] if impatient else [SCRIPT]
    done = subprocess.run(
        [*command, "push", run, REPO, *options],
        env=environment(run, hub) | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def scenario(run: Path, *faults: Fault, options=(), healed: bool = False, before=None, **env):
    """A Hub with these faults, a push to it, and with `healed` a second one without them."""
    with Hub(*faults) as hub:
        if before:
            hub.repositories[REPO] = before
        results = [push(run, hub, *options, **env)]
        if healed:
            hub.faults.clear()
            hub.requests.clear()
            results.append(push(run, hub, *options, **env))
    return Pushed(hub, results)


ANSWERS = {
    # request that fails, HTTP status, exit code, parts of the error line
    "no such token": (r"POST /api/repos/create", 401, 3, "rejected the token", "hf auth"),
    "no permission": (r"POST /api/repos/create", 403, 3, "does not permit", "write permission"),
    "gone": (r"/preupload/", 404, 2, "no such repository", "check the name"),
    "raced": (r"/commit/", 409, 1, "someone else", "run the same command again"),
    "too many": (r"/commit/", 429, 1, "limits the request rate", "wait some minutes"),
    "broken": (r"/commit/", 500, 1, "the Hub failed", "run the same command again"),
    "broken storage": (STORAGE, 503, 1, "the Hub failed", "while uploading (503"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Future[Pushed]]:
    """Everything is started here, some at a time: most of it waits between the client's retries."""
    run = make_run(tmp_path_factory.mktemp("push") / "run")
    leaky = f"your token {TOKEN} is bad, see https://hub.example/x?X-Amz-Signature={SIGNATURE}"
    jobs = {
        name: functools.partial(scenario, run, Fault(where, status=status, message=leaky))
        for name, (where, status, *_) in ANSWERS.items()
    }
    jobs |= {
        "cut for good": functools.partial(
            scenario, run, Fault(STORAGE + r"\w+/3", cut=20_000), healed=True
        ),
        "well": functools.partial(scenario, run, options=("--tag", "v1", "--json"), healed=True),
        "cut once": functools.partial(scenario, run, Fault(STORAGE, times=1, cut=20_000)),
        "failed once": functools.partial(scenario, run, Fault(STORAGE, times=1, status=500)),
        "limited once": functools.partial(
            scenario, run, Fault(STORAGE, 1, 429, headers={"RateLimit": '"api";r=0;t=0'})
        ),
        "slow": functools.partial(scenario, run, Fault(STORAGE, pause=0.05)),
        "silent": functools.partial(scenario, run, Fault("create", stall=True), impatient=True),
        "public": functools.partial(scenario, run, options=("--public",)),
        "exists in public": functools.partial(scenario, run, before=Repository(private=False)),
        "tag exists": functools.partial(
            scenario, run, options=("--tag", "v1"), before=Repository(True, tags={"v1": "0" * 40})
        ),
        "bad license": functools.partial(scenario, run, options=("--license", "made-up")),
        "no network": lambda: Pushed(Hub(), [push(run, None)]),
        "offline": functools.partial(scenario, run, HF_HUB_OFFLINE="1"),
        "no token": functools.partial(scenario, run, HF_TOKEN=""),
        "debug": functools.partial(
            scenario, run, Fault("/commit/", status=500, message=leaky), options=("--debug",)
        ),
        "xet refused": functools.partial(
            scenario, run, Fault("xet-write-token", status=403), HF_HUB_DISABLE_XET="0"
        ),
    }
    with ThreadPoolExecutor(6) as pool:
        return {name: pool.submit(job) for name, job in jobs.items()}


@pytest.fixture
def outcome(outcomes):
    return lambda name: outcomes[name].result()


def assert_one_line(result: Result, code: int, *parts: str) -> None:
    assert result.code == code, result.err
    assert result.last_line.startswith("error: "), result.err
    assert sum(line.startswith("error: ") for line in result.err.splitlines()) == 1
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.last_line
    assert result.out == ""


def test_everything_that_belongs_arrives_in_one_private_commit(outcome) -> None:
    pushed = outcome("well")
    first, _ = pushed.results
    assert first.code == 0, first.err
    repository = pushed.hub.repositories[REPO]
    report = json.loads(first.out)
    assert repository.private and report["private"]
    assert set(repository.files) == SENT == set(report["files"])
    assert report["left_out"] == ["trainer_state.json"]
    assert repository.commits == [report["commit"]]
    assert repository.tags == {"v1": report["commit"]}
    assert repository.files["README.md"].decode() == report["card"]
    for name, data in repository.files.items():
        assert len(data) == report["files"][name]
        assert HOST.encode() not in data


def test_bytes_arrive_unchanged_in_parts(outcome, tmp_path) -> None:
    pushed = outcome("well")
    adapter = make_run(tmp_path / "run") / "adapter"
    for name in SENT - {"README.md"}:
        assert pushed.hub.repositories[REPO].files[name] == (adapter / name).read_bytes()


def test_a_tag_that_exists_is_refused_before_anything_is_sent(outcome) -> None:
    second = outcome("well").last
    assert_one_line(second, 2, "already has a tag v1", "nothing was uploaded")
    assert_one_line(outcome("tag exists").last, 2, "already has a tag v1")
    assert not outcome("tag exists").hub.seen("/preupload/|/storage/|/commit/")


def test_public_only_when_asked(outcome) -> None:
    assert outcome("public").last.code == 0
    assert not outcome("public").hub.repositories[REPO].private
    pushed = outcome("exists in public")
    assert_one_line(pushed.last, 2, "exists and is public", "--public")
    assert not pushed.hub.seen("/preupload/|/storage/|/commit/")


@pytest.mark.parametrize("name", ANSWERS)
def test_each_refusal_is_one_line_with_its_exit_code(outcome, name) -> None:
    where, status, code, *parts = ANSWERS[name]
    pushed = outcome(name)
    assert_one_line(pushed.last, code, *parts, str(status), REPO)
    assert pushed.hub.seen(where)
    assert not pushed.hub.repositories.get(REPO, Repository(True)).commits


@pytest.mark.parametrize("name", ["cut once", "failed once", "limited once", "slow"])
def test_what_passes_is_waited_for(outcome, name) -> None:
    pushed = outcome(name)
    assert pushed.last.code == 0, pushed.last.err
    assert set(pushed.hub.repositories[REPO].files) == SENT
    if name != "slow":
        assert len(pushed.hub.seen(STORAGE)) == 6  # five parts, one of them twice


def test_an_interrupted_upload_goes_on(outcome) -> None:
    pushed = outcome("cut for good")
    broken, resumed = pushed.results
    assert_one_line(broken, 1, "broke the connection", "while uploading", "run the same command")
    assert resumed.code == 0, resumed.err
    assert set(pushed.hub.repositories[REPO].files) == SENT
    assert len(pushed.hub.repositories[REPO].commits) == 1


def test_a_silent_hub_is_given_up(outcome) -> None:
    assert_one_line(outcome("silent").last, 1, "did not answer in time", "creating the repository")


def test_ctrl_c_ends_an_upload_at_once(tmp_path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    for number in (1, 2):  # two files: two threads of the client, which it would wait for
        (merged / f"model-0000{number}-of-00002.safetensors").write_bytes(b"%d" % number * 999)
    (merged / "config.json").write_text("{}")
    Provenance("merged", "tiny-python-llama", None, "none", None, "0.1.0").save(merged)
    with Hub(Fault(STORAGE, stall=True)) as hub:
        command = [SCRIPT, "push", merged, REPO]
        with subprocess.Popen(
            command, env=environment(merged, hub), stderr=subprocess.PIPE, text=True
        ) as process:
            while len(hub.seen(STORAGE)) < 2 and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(60) == 130
            finally:
                process.kill()
            assert process.stderr.read().endswith("\ninterrupted\n")


def test_what_the_environment_lacks(outcome) -> None:
    assert_one_line(outcome("no network").last, 3, "127.0.0.1:9 cannot be reached", "network")
    assert_one_line(outcome("offline").last, 3, "HF_HUB_OFFLINE")
    assert_one_line(outcome("no token").last, 3, "hf auth login", "HF_TOKEN")
    assert not outcome("no token").hub.requests


def test_the_hub_checks_the_card_before_the_weights_go(outcome) -> None:
    pushed = outcome("bad license")
    assert_one_line(pushed.last, 2, "rejected the model card", '"license" must be one of')
    assert not pushed.hub.seen("/preupload/|/storage/")


def test_xet_storage_fails_in_one_line_too(outcome) -> None:
    pushed = outcome("xet refused")
    assert pushed.hub.seen("xet-write-token")
    assert_one_line(pushed.last, 1, "uploading failed")


def test_no_secret_leaves_the_process(outcomes, outcome) -> None:
    for name in outcomes:
        for result in outcome(name).results:
            text = result.out + result.err
            assert TOKEN not in text and SIGNATURE not in text, name
            assert not re.search(r"hf_\w{10}", text), name
        for repository in outcome(name).hub.repositories.values():
            for data in repository.files.values():
                assert TOKEN.encode() not in data
    assert "Traceback" in outcome("debug").last.err


def test_an_unchanged_model_sends_nothing_again(tmp_path) -> None:
    run = make_run(tmp_path / "run")
    pushed = scenario(run, healed=True)
    first, second = pushed.results
    assert (first.code, second.code) == (0, 0), second.err
    assert not pushed.hub.seen("/storage/|/commit/")
    assert len(pushed.hub.repositories[REPO].commits) == 1
    assert second.out == first.out


def test_a_secret_in_a_file_stops_everything(tmp_path) -> None:
    run = make_run(tmp_path / "run")
    config = run / "adapter" / "tokenizer_config.json"
    config.write_text(f'{{"eos_token": "</s>",\n"auth": "{TOKEN}"}}')
    pushed = scenario(run)
    assert_one_line(pushed.last, 2, "a Hugging Face token in tokenizer_config.json line 2")
    assert TOKEN not in pushed.last.err
    assert not pushed.hub.requests


def test_a_dry_run_sends_nothing_and_shows_all(tmp_path) -> None:
    run = make_run(tmp_path / "run")
    pushed = scenario(run, options=("--dry-run",), HF_TOKEN="")
    assert pushed.last.code == 0, pushed.last.err
    assert not pushed.hub.requests
    assert pushed.last.out.startswith("---\n")
    for name in SENT:
        assert re.search(rf"^ *[\d,]+  {name}$", pushed.last.out, re.MULTILINE)
    assert "not sent  trainer_state.json" in pushed.last.out


def test_the_license_of_a_base_on_the_hub(tmp_path) -> None:
    run = make_run(tmp_path / "run", base="meta/llama-x")
    with Hub() as hub:
        assert_one_line(push(run, hub, "--dry-run"), 2, "license of meta/llama-x", "--license")
        hub.cards["meta/llama-x"] = {"license": "llama2", "language": ["en"]}
        known = push(run, hub, "--dry-run")
    assert known.code == 0, known.err
    assert "license: llama2\n" in known.out and "- en\n" in known.out
    unreachable = push(run, None, "--dry-run")
    assert_one_line(unreachable, 3, "127.0.0.1:9 cannot be reached", "set --license")
    assert push(run, None, "--dry-run", "--license", "llama2").code == 0
