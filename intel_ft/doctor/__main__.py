"""Prints this host's time and diagnosis as JSON; `doctor.hosts` starts it on each host."""

import json
import sys
import time
from dataclasses import asdict

from intel_ft.doctor.examine import examine

if __name__ == "__main__":
    start = time.time()
    # A single write, so that the lines of several hosts do not mix.
    sys.stdout.write(json.dumps({"time": start, "diagnosis": asdict(examine())}) + "\n")
