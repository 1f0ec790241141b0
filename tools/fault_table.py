"""Injects each fault several times and prints the table of faults in docs/multi-node.md.

    tools/fault_table.py --runs 10 -- intel-ft launch config.yaml --hostfile hosts

The two hosts are network namespaces of this machine (tests/support/hosts.py; needs root). The
command runs on the first host, in a folder with config.yaml and a host file `hosts`.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(_TESTS))


def main() -> None:
    """Print each outcome as a line of JSON on stderr, and the table on stdout."""
    from support import hosts
    from support.cluster_faults import FAULTS, Outcome, suffer

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="runs of each fault")
    parser.add_argument(
        "--bound", type=float, default=120, help="seconds before a job counts as hung"
    )
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this fault")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    if problem := hosts.why_not():
        sys.exit(f"error: {problem}")
    print("| fault | runs | job ended after, s | nothing left after, s | checkpoints lost |")
    print("|---|---|---|---|---|")
    for fault in options.fault or FAULTS:
        outcomes: list[Outcome] = []
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as folder, hosts.cluster(Path(folder), 2) as cluster:
                outcomes.append(suffer(fault, cluster, options.command, os.environ, options.bound))
            print(json.dumps(dataclasses.asdict(outcomes[-1])), file=sys.stderr, flush=True)
        ended = _range([outcome.seconds for outcome in outcomes])
        empty = _range([outcome.empty for outcome in outcomes])
        lost = sum(outcome.lost for outcome in outcomes)
        print(f"| {fault} | {len(outcomes)} | {ended} | {empty} | {lost} |", flush=True)


def _range(seconds: list[float | None]) -> str:
    """The shortest and the longest time, and how many jobs never ended."""
    finite = [value for value in seconds if value is not None]
    text = f"{min(finite):.1f} to {max(finite):.1f}" if finite else ""
    never = len(seconds) - len(finite)
    return f"{text} ({never} never)" if never else text


if __name__ == "__main__":
    main()
