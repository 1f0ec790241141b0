"""Memory of all ranks of a run on this host, and how long they take to their first step.

Usage: python tools/measure_start.py CONFIG [SECTION.KEY=VALUE]... [--ranks 1 4] [--via LAUNCHER]
           [--repeat N]

For each number of ranks it starts the run with `intel-ft launch` (1: `intel-ft train`), once or
N times, and prints one JSON line for each start:

    ranks               number of ranks
    first_step_s        seconds from the command to the beginning of the first step
    first_step_done_s   the same to its end
    before_step_gib     PSS of all ranks at the beginning of the first step
    peak_before_gib     highest PSS of all ranks before that, read every 0.3 s (a shared page counts
                        once); launchers, which are no ranks, do not count
    peak_gib            the same of the whole run
    peak_parts_mib      what that consists of: anonymous memory, the shared base, pages of the
                        model's files, libraries; and huge pages, which are part of the first
    private_mib         private memory of each rank at the beginning of the first step
    tokens_per_s        of the last step, of all ranks
    base                what the run reports of backend.share_base, if anything

Example: the memory of one and of four ranks, and a second start from the base cache:

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


def parts_kib(pid: int) -> dict[str, int]:
    """PSS of a process in KiB, by what its pages are; "huge": the anonymous ones of 2 MiB.

    Empty if the process is gone.
    """
    found: dict[str, int] = {}
    part = ""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
            name, size, *rest = line.split(maxsplit=5)
            if not name.endswith(":"):
                part = _part_of(rest[3] if len(rest) > 3 else "")
            elif name == "Pss:":
                found[part] = found.get(part, 0) + int(size)
            elif name == "AnonHugePages:":
                found["huge"] = found.get("huge", 0) + int(size)
    return found


def _part_of(path: str) -> str:
    """What a mapping is, from its path in /proc/PID/smaps, which is empty for anonymous memory."""
    if not path or path.startswith("["):
        return "anonymous"
    name = path.removesuffix(" (deleted)")
    if name.startswith("/memfd:") or name.endswith(".base"):
        return "base"
    return "model files" if name.endswith((".safetensors", ".bin")) else "libraries"


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
            samples: list[tuple[float, dict[int, dict[str, int]]]] = []
            while run.poll() is None:
                samples.append((time.time(), {pid: parts_kib(pid) for pid in _processes(run.pid)}))
                time.sleep(0.3)
        text = log.read_text(encoding="utf-8")
        if run.returncode:
            sys.exit(f"{' '.join(command)}\n{text[-2000:]}")
        ranks_marks = [one for one in marks.iterdir() if not one.suffix]
        first = [json.loads(one.read_text()) for one in ranks_marks]
        pids = {int(one.name) for one in ranks_marks}
        done = [float(one.read_text()) for one in marks.glob("*.done")]
        rates = re.findall(r"^step .* (\d+) token/s", text.replace(",", ""), re.M)
        base = re.search(r"backend\.share_base = .*", text)
    started = max(one["began"] for one in first)
    totals = [(at, _sum_of_ranks(sample, pids)) for at, sample in samples]
    peak = max((total for _, total in totals), key=_pss)
    peak_before = max((_pss(total) for at, total in totals if at < started), default=0)
    return {
        "ranks": len(first),
        "first_step_s": round(started - begin, 1),
        "first_step_done_s": round(max(done) - begin, 1),
        "before_step_gib": round(sum(one["Pss"] for one in first) / 2**20, 3),
        "peak_before_gib": round(peak_before / 2**20, 3),
        "peak_gib": round(_pss(peak) / 2**20, 3),
        "peak_parts_mib": {part: round(size / 2**10) for part, size in sorted(peak.items())},
        "private_mib": [
            round((one["Private_Dirty"] + one["Private_Clean"]) / 2**10) for one in first
        ],
        "tokens_per_s": int(rates[-1]) if rates else None,
        "base": None if base is None else base.group(),
    }


def _processes(root: int) -> list[int]:
    """`root` and its descendants."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def _sum_of_ranks(sample: dict[int, dict[str, int]], pids: set[int]) -> dict[str, int]:
    """KiB by part, of those processes that are ranks."""
    total: dict[str, int] = {}
    for pid, parts in sample.items():
        for part, size in parts.items() if pid in pids else ():
            total[part] = total.get(part, 0) + size
    return total


def _pss(parts: dict[str, int]) -> int:
    return sum(size for part, size in parts.items() if part != "huge")


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
