"""tools/shaped_links.py: the links between hosts have the requested rate and latency."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import hosts

TOOL = Path(__file__).parents[2] / "tools/shaped_links.py"

pytestmark = pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))


def test_a_link_has_the_requested_rate_and_latency():
    options = ["--gbit", "0.5", "--ms", "3", "--hosts", "3", "--"]
    command = [sys.executable, TOOL, *options, "sh", "-c", "hostname; exit 7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (7, "node1\n"), done.stderr
    found = re.search(r"round trip ([\d.]+) ms, ([\d.]+) Gbit/s", done.stderr)
    trip, rate = map(float, found.groups())
    assert 6 <= trip < 200  # the upper bound allows for other load on this machine
    assert 0 < rate <= 0.5
