"""Runs PyTorch's own tests of torch.distributed with a backend, and prints what passed.

    python tools/c10d_suite.py ccl --launcher fork
    python tools/c10d_suite.py ccl --launcher mpirun --tests test_all_reduce_sum,test_send_recv

The tests are those of torch.testing._internal.distributed.distributed_test, which torch's wheel
contains. `fork` runs them as PyTorch does, each in new processes; `mpirun` runs one after another
in the same ranks, which join and leave a process group for each. Ranks that crash or hang are
started again with the tests that are left.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

GROUP_SECONDS = 60
SILENT_SECONDS = 100  # without a finished test: the ranks hang


class AsGloo(str):
    """A backend's name that PyTorch's tests take for gloo's, too: many are for names they know."""

    def __eq__(self, other: object) -> bool:
        return other == "gloo" or str(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __str__(self) -> str:
        return self[:]


def test_class(backend: str) -> Any:
    """PyTorch's tests, imported as gloo's and run with the backend."""
    import torch

    import intel_ft.distributed.oneccl  # noqa: F401  registers the backend

    # They import `expecttest`, which no test of process groups uses.
    sys.modules.setdefault("expecttest", unittest)
    os.environ["BACKEND"] = "gloo"
    from torch.testing._internal.distributed import distributed_test

    if int(os.environ["WORLD_SIZE"]) >= 4:
        os.environ["BACKEND"] = "mpi"  # or tests of sub-groups need 8 ranks
    distributed_test.BACKEND = AsGloo(backend)
    distributed_test.default_pg_timeout = GROUP_SECONDS
    torch.set_num_threads(1)

    class Suite(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
        """All tests, in forked processes."""

        def setUp(self) -> None:
            super().setUp()  # type: ignore[no-untyped-call]
            self._start_processes(torch.multiprocessing.get_context("fork").Process)

    return Suite


def run_rank(backend: str, names: list[str], results: Path) -> None:
    """Run tests as a rank that mpirun has started; append an outcome per test to `results`."""
    rank, size = int(os.environ["PMI_RANK"]), int(os.environ["PMI_SIZE"])
    os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    suite = test_class(backend)
    import torch.distributed as dist
    from torch.testing._internal.common_utils import set_rng_seed
    from torch.testing._internal.distributed import distributed_test

    for name in names:
        folder = results.parent / name
        for part in ("barrier", "test_dir", "init_dir"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        os.environ["TEMP_DIR"] = str(folder)
        distributed_test.Barrier.barrier_id = 0
        seconds = distributed_test.CUSTOM_PG_TIMEOUT.get(name, GROUP_SECONDS)
        outcome = "pass"
        try:
            dist.init_process_group(
                backend,
                init_method=f"file://{folder}/store",
                world_size=size,
                rank=rank,
                timeout=timedelta(seconds=seconds),
            )
            case = suite(name)
            case.rank, case.file_name = rank, f"{folder}/store"
            case.skip_return_code_checks = []
            set_rng_seed()  # type: ignore[no-untyped-call]
            try:
                test = getattr(case, name)
                if getattr(test, "__unittest_skip__", False):
                    raise unittest.SkipTest(test.__unittest_skip_why__)
                test()
            except (unittest.SkipTest, SystemExit) as skipped:
                outcome = f"skip: {skipped}"
            finally:
                case.doCleanups()
            case._barrier()
            if dist.is_initialized():
                dist.destroy_process_group()
        except BaseException:
            outcome = f"fail: {traceback.format_exc()[-3000:]}"
        with (results.parent / f"{rank}.jsonl").open("a") as stream:
            stream.write(json.dumps([name, outcome]) + "\n")
        if outcome.startswith("fail"):
            os._exit(1)  # the other ranks may wait for this one


def by_mpirun(backend: str, names: list[str], ranks: int) -> dict[str, str]:
    """The outcome of each test in ranks of one mpirun, started again after each failure."""
    from torch.testing._internal.distributed.distributed_test import CUSTOM_PG_TIMEOUT

    outcomes: dict[str, str] = {}
    while left := [name for name in names if name not in outcomes]:
        # After a test that lets a timeout pass, a rank cannot go on.
        short = {name for name in left if "timeout" in name} | CUSTOM_PG_TIMEOUT.keys()
        ends = [number for number, name in enumerate(left, 1) if name in short]
        left = left[: min(ends, default=None)]
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results"
            (Path(folder) / "names.json").write_text(json.dumps(left))
            mpirun = Path(sys.executable).parent / "mpirun"
            command = [str(mpirun), "-n", str(ranks), sys.executable, __file__]
            with (Path(folder) / "output").open("w+") as output:
                process = subprocess.Popen(
                    [*command, backend, "--rank-of", str(results)],
                    env={
                        **os.environ,
                        "PATH": f"{mpirun.parent}:{os.environ['PATH']}",
                        "I_MPI_ROOT": os.environ.get("I_MPI_ROOT", sys.prefix),
                        "FI_PROVIDER_PATH": f"{sys.prefix}/lib",
                    },
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                hung = _wait(process, Path(folder))
                output.seek(0)
                text = output.read()[-2000:]
            by_rank = [_read(Path(folder) / f"{rank}.jsonl") for rank in range(ranks)]
        done = [name for name in left if all(name in one for one in by_rank)]
        for name in left:
            found = [one[name] for one in by_rank if name in one]
            failed = [one for one in found if one.startswith("fail")]
            if failed or name in done:
                outcomes[name] = (failed or sorted(found))[0]
            else:  # the first unfinished one; those after it did not start
                outcomes.setdefault(name, f"fail: {'hung' if hung else 'crashed'}: {text}")
            if failed or name not in done:
                break
    return outcomes


def _wait(process: "subprocess.Popen[bytes]", folder: Path) -> bool:
    """Wait for the ranks; True if they hung and were ended."""
    files, last, sizes = sorted(folder.glob("*.jsonl")), time.monotonic(), None
    while process.poll() is None:
        files = sorted(folder.glob("*.jsonl"))
        if (now := [file.stat().st_size for file in files]) != sizes:
            last, sizes = time.monotonic(), now
        if time.monotonic() - last > SILENT_SECONDS:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.2)
    return False


def _read(path: Path) -> dict[str, str]:
    return dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}


class _Outcomes(unittest.TestResult):
    """Collects an outcome per test."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}

    def _note(self, test: Any, outcome: str) -> None:
        name = test._testMethodName
        self.outcomes[name] = outcome
        print(f"{outcome.splitlines()[0][:60]:60s} {name}", file=sys.stderr, flush=True)

    def addSuccess(self, test: Any) -> None:
        self._note(test, "pass")

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, f"skip: {reason}")

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, "fail: " + "".join(traceback.format_exception(*err))[-3000:])

    addError = addFailure


def by_fork(suite: Any, names: list[str]) -> dict[str, str]:
    """The outcome of each test in forked processes."""
    result = _Outcomes()
    for name in names:
        suite(name).run(result)
    return result.outcomes


def main() -> None:
    """Run the tests, print the failures and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("backend")
    parser.add_argument("--launcher", choices=["fork", "mpirun"], default="fork")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tests", help="names, separated by commas; all of them if not given")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        run_rank(
            arguments.backend,
            json.loads((arguments.rank_of.parent / "names.json").read_text()),
            arguments.rank_of,
        )
        return
    os.environ["WORLD_SIZE"] = str(arguments.ranks)
    suite = test_class(arguments.backend)
    names = unittest.TestLoader().getTestCaseNames(suite)
    if arguments.tests:
        names = [name for name in names if name in arguments.tests.split(",")]
    if arguments.launcher == "fork":
        outcomes = by_fork(suite, list(names))
    else:
        outcomes = by_mpirun(arguments.backend, list(names), arguments.ranks)
    for name, outcome in outcomes.items():
        if outcome.startswith("fail"):
            print(f"--- {name}\n{outcome}")
    counts = Counter(outcome[:4] for outcome in outcomes.values())
    print(f"{arguments.backend}, {arguments.launcher}, {arguments.ranks} ranks:", dict(counts))
    if arguments.json:
        arguments.json.write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
