"""Compares training on int4 base weights with training on bf16 ones, in turns.

    python tools/compare_bases.py                                        # about 3 minutes
    python tools/compare_bases.py --workload llama2-7b-slice --rows 512 --turns 1 --seconds 10

Each run is one of `intel-ft bench train --lengths fixed`: a fresh process, one row a step, the
training loop of a real run. Prints a Markdown table. A comparison is reliable where the GEMM rates
of all its runs are alike (last column: highest over lowest).
"""

import argparse
import statistics
import sys

from intel_ft.bench.run_worker import run_task, with_threads
from intel_ft.bench.task import OWN_TRAINER, Task
from intel_ft.bench.workloads import WORKLOADS, workload

DTYPES = ("auto", "int4")


def main() -> None:
    """Run all comparisons and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="small", choices=WORKLOADS)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048], help="tokens of a row")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="timed part of a run")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    print("| workload | tokens a row | bf16 | int4 | time, int4 / bf16 | peak RSS | GEMM rates |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in arguments.rows:
        chosen = workload(arguments.workload, "fixed", row)
        runs: dict[str, list[dict[str, float]]] = {dtype: [] for dtype in DTYPES}
        for turn in range(arguments.turns):
            for dtype in DTYPES if turn % 2 == 0 else DTYPES[::-1]:
                task = Task(
                    OWN_TRAINER,
                    chosen,
                    threads=arguments.threads,
                    seconds=arguments.seconds,
                    base_dtype=dtype,
                )
                run = run_task(with_threads(task))
                runs[dtype].append(run)
                print(f"{row} {dtype} {run['tokens_per_s']:.1f} token/s", file=sys.stderr)
        bf16, int4 = (statistics.median(run["step_s"] for run in runs[dtype]) for dtype in DTYPES)
        memory = " to ".join(f"{max(r['peak_rss_gib'] for r in runs[d]):.2f}" for d in DTYPES)
        rates = [run["gemm_gflops"] for dtype in DTYPES for run in runs[dtype]]
        cells = (
            arguments.workload,
            f"{row:,}",
            f"{row / bf16:,.0f} token/s",
            f"{row / int4:,.0f} token/s",
            f"{int4 / bf16:.2f}",
            f"{memory} GiB",
            f"{max(rates) / min(rates):.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
