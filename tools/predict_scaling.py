"""Predict weak-scaling efficiency on many nodes, as a Markdown table:

intel-ft bench collectives --hosts node1,node2 --json > link.json
python tools/predict_scaling.py link.json --gbit 10 --step-seconds 4 --gradient-mb 160 \
    [--check other.json]

LINK is a report over a link of --gbit Gbit/s, one rank a host; its fit tells a message's latency
and the share of the link's rate that oneCCL gets. --check compares what the fit predicts with a
report of another number of ranks on the same links.
"""

import argparse
import json
from pathlib import Path
from statistics import median

from intel_ft.bench.alpha_beta_model import Link, predicted_efficiency, prediction_errors

NODES = (16, 64, 256)
GBIT = (10, 25, 100)
ALGORITHM = "halving"  # for two ranks the same as a ring


def main() -> None:
    """Print the table, and the model's errors below it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("link", type=Path)
    parser.add_argument("--gbit", type=float, required=True, help="of the link that was measured")
    parser.add_argument("--step-seconds", type=float, required=True, help="of a node alone")
    parser.add_argument("--gradient-mb", type=float, required=True, help="fp32, 10^6 bytes")
    parser.add_argument("--check", type=Path)
    asked = parser.parse_args()
    found = json.loads(asked.link.read_text())["ccl"]["fits"][ALGORITHM]
    share = 8e-9 / (found["beta_s_per_byte"] * asked.gbit)
    print(f"| nodes | {' | '.join(f'{gbit} Gbit/s' for gbit in GBIT)} |")
    print("| ---: " * (1 + len(GBIT)) + "|")
    for nodes in NODES:
        cells = [
            predicted_efficiency(
                asked.step_seconds,
                round(asked.gradient_mb * 1e6),
                nodes,
                Link.of(gbit, found["alpha_s"], share),
            )
            for gbit in GBIT
        ]
        print(f"| {nodes} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print(
        f"\nA message takes {found['alpha_s'] * 1e6:.0f} us and gets {share:.0%} of the link. "
        f"Where it was measured, this is off by {found['median_error']:.0%} in the median, at most "
        f"{found['worst_error']:.0%}."
    )
    if asked.check:
        report = json.loads(asked.check.read_text())
        times = [(point["bytes"], point["seconds"]) for point in report["ccl"]["all-reduce"]]
        link = Link(found["alpha_s"], found["beta_s_per_byte"])
        errors = prediction_errors(link, times, report["ranks"], "best")
        print(
            f"On {report['ranks']} ranks, which it was not fitted to: {median(errors):.0%} in the "
            f"median, at most {max(errors):.0%}."
        )


if __name__ == "__main__":
    main()
