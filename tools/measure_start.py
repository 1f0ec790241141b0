"""Memory of all ranks of a run on this host, and how long they take to their first step.

Usage: python tools/measure_start.py CONFIG [SECTION.KEY=VALUE]... [--ranks 1 4] [--via LAUNCHER]
           [--repeat N]

For each number of ranks it starts the run with `intel-ft launch` (1: `intel-ft train`), once or
N times, and prints one JSON line for each start:

    ranks               number of ranks
    first_step_s        seconds from the command to the beginning of the first step
    first_step_done_s   the same to its end
    before_step_gib     PSS of all ranks at the beginning of the first step
    peak_gib            highest PSS of all ranks, read every 0.5 s (a shared page counts once)
    private_mib         private memory of each rank at the beginning of the first step
    base                what the run reports of backend.share_base, if anything

Example: the memory of one and of four ranks, and a second start from the cache of bases:

    python tools/random_model.py 7b-slice /tmp/slice
    python tools/measure_start.py run.yaml model.name_or_path=/tmp/slice train.max_steps=1
    python tools/measure_start.py run.yaml backend.share_base=cache --ranks 1 --repeat 2
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

_FOLDER = "MEASURE_START_FOLDER"


def memory_kib(pid: int | str) -> dict[str, int]:
    """KiB of a process by kind, such as Pss and Private_Dirty (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name: int(size) for name, size in (re.split(r":\s+|\s+", line)[:2] for line in lines)}


class Marks(TrainerCallback):  # type: ignore[misc]
    """Writes when the first step began and ended, and this rank's memory at its beginning."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the first step's beginning."""
        path = Path(os.environ[_FOLDER]) / str(os.getpid())
        if not path.exists():
            now = time.time()
            path.write_text(json.dumps({"began": now, **memory_kib("self")}), encoding="ascii")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the first step's end."""
        path = Path(os.environ[_FOLDER]) / f"{os.getpid()}.done"
        if not path.exists():
            path.write_text(str(time.time()), encoding="ascii")


def measure(config: str, overrides: list[str], ranks: int, via: str) -> dict[str, Any]:
    """Start the run once, as the module's docstring says."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder, "marks")
        marks.mkdir()
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.getenv("PYTHONPATH")]))
        verb = ["train"] if ranks == 1 else ["launch", f"--ranks-per-host={ranks}", f"--via={via}"]
        command = [sys.executable, "-m", "intel_ft", *verb, config, *overrides]
        command += [f"output.directory={folder}/run", "train.callbacks=[measure_start:Marks]"]
        begin, log = time.time(), Path(folder, "log")
        with log.open("w") as output:
            run = subprocess.Popen(
                command,
                env=os.environ | {_FOLDER: str(marks), "PYTHONPATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            peak = 0
            while run.poll() is None:
                peak = max(peak, sum(_pss(pid) for pid in _rank_processes(run.pid)))
                time.sleep(0.5)
        text = log.read_text(encoding="utf-8")
        if run.returncode:
            sys.exit(f"{' '.join(command)}\n{text[-2000:]}")
        first = [json.loads(one.read_text()) for one in marks.iterdir() if not one.suffix]
        done = [float(one.read_text()) for one in marks.glob("*.done")]
        base = re.search(r"backend\.share_base = .*", text)
    return {
        "ranks": len(first),
        "first_step_s": round(max(one["began"] for one in first) - begin, 1),
        "first_step_done_s": round(max(done) - begin, 1),
        "before_step_gib": round(sum(one["Pss"] for one in first) / 2**20, 3),
        "peak_gib": round(peak / 2**20, 3),
        "private_mib": [
            round((one["Private_Dirty"] + one["Private_Clean"]) / 2**10) for one in first
        ],
        "base": None if base is None else base.group(),
    }


def _rank_processes(launcher: int) -> list[int]:
    """`launcher` if it is a rank itself, and its descendants that are."""
    found, waiting = [], [launcher]
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"train" in arguments and b"launch" not in arguments:
                found.append(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def _pss(pid: int) -> int:
    with suppress(OSError):
        return memory_kib(pid)["Pss"]
    return 0


def main() -> None:
    """Measure each number of ranks."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").partition("Usage: ")[2].split("\n\n")[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--via", default="torchrun")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_intermixed_args()
    for ranks in options.ranks:
        for _ in range(options.repeat):
            result = measure(options.config, options.overrides, ranks, options.via)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
