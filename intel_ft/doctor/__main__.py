"""The time and diagnosis of this host as JSON; started on each host by insight.doctor.hosts."""

import json
import sys
import time
from dataclasses import asdict

from intel_ft.doctor.examine import examine

if __name__ == "__main__":
    began = time.time()
    # One write, so that lines of several hosts do not mix.
    sys.stdout.write(json.dumps({"time": began, "diagnosis": asdict(examine())}) + "\n")
