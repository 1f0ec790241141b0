"""Predicts weak scaling efficiency on many nodes, as a Markdown table.

    intel-ft bench collectives --hosts node1,node2 --json > link.json
    python tools/predict_scaling.py link.json --gbit 10 --step-seconds 4 --gradient-mb 160 \
        [--check other.json]

LINK is a report measured over a link of --gbit Gbit/s with one rank per host. Its fit gives the
latency of a message and the fraction of the link's rate that oneCCL reaches. --check compares the
fit's predictions with a report of another number of ranks on the same links.
"""

import argparse
import json
from pathlib import Path
from statistics import median

from intel_ft.bench.alpha_beta_model import Link, predicted_efficiency, prediction_errors

NODES = (16, 64, 256)
GBIT = (10, 25, 100)
ALGORITHM = "halving"  # the same as a ring for two ranks


def main() -> None:
    """Print the table, and the model's errors below it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("link", type=Path)
    parser.add_argument("--gbit", type=float, required=True, help="rate of the measured link")
    parser.add_argument(
        "--step-seconds", type=float, required=True, help="step time on a single node"
    )
    parser.add_argument(
        "--gradient-mb",
        type=float,
        required=True,
        help="size of the gradients (fp32) in 10^6 bytes",
    )
    parser.add_argument("--check", type=Path, help="a report to check the predictions with")
    arguments = parser.parse_args()
    fitted = json.loads(arguments.link.read_text())["ccl"]["fits"][ALGORITHM]
    share = 8e-9 / (fitted["beta_s_per_byte"] * arguments.gbit)
    print(f"| nodes | {' | '.join(f'{gbit} Gbit/s' for gbit in GBIT)} |")
    print("| ---: " * (1 + len(GBIT)) + "|")
    for nodes in NODES:
        cells = [
            predicted_efficiency(
                arguments.step_seconds,
                round(arguments.gradient_mb * 1e6),
                nodes,
                Link.of(gbit, fitted["alpha_s"], share),
            )
            for gbit in GBIT
        ]
        print(f"| {nodes} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print(
        f"\nA message has a latency of {fitted['alpha_s'] * 1e6:.0f} us and reaches {share:.0%} of "
        f"the link's rate. Error on the fitted measurements: {fitted['median_error']:.0%} in the "
        f"median, at most {fitted['worst_error']:.0%}."
    )
    if arguments.check:
        report = json.loads(arguments.check.read_text())
        times = [(point["bytes"], point["seconds"]) for point in report["ccl"]["all-reduce"]]
        link = Link(fitted["alpha_s"], fitted["beta_s_per_byte"])
        errors = prediction_errors(link, times, report["ranks"], "best")
        print(
            f"Error on {report['ranks']} ranks, which the fit did not use: {median(errors):.0%} in "
            f"the median, at most {max(errors):.0%}."
        )


if __name__ == "__main__":
    main()
