"""This host's diagnosis as one line of JSON: started on each host by insight.doctor.hosts."""

import json
import sys
from dataclasses import asdict

from intel_ft.insight.doctor.examine import examine

if __name__ == "__main__":
    # One write, so that lines of several hosts do not mix.
    sys.stdout.write(json.dumps(asdict(examine())) + "\n")
