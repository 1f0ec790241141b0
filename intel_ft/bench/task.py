"""The sides of a training benchmark: which there are, whether they are installed, and what one run
of a side is asked to do; called from insight. Imports nothing heavy.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from intel_ft.backends import ipex
from intel_ft.bench.workloads import Workload
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.versions import installed

OWN_TRAINER = "ours"
OWN_TRAINER_IPEX = "ours-ipex"
OWN_TRAINERS = (OWN_TRAINER, OWN_TRAINER_IPEX)
IPEX_CONTENDERS = ("ipex", OWN_TRAINER_IPEX)
PEERS = ("trl", "trl-packed", "transformers", *IPEX_CONTENDERS)
IPEX_PYTHON = "INTEL_FT_IPEX_PYTHON"
"""Set in the environment, this is the Python of the sides that need IPEX."""
WARM_UP_STEPS = 2
GPU_WARM_UP_STEPS = 5  # CUDA loads a product's kernel when a row of a new length first needs it
LEAST_STEPS = 5
LONG_STEP = 60.0  # seconds; where a step takes longer, one is warm-up and at least two are timed


@dataclass(frozen=True)
class Task:
    """One run of one side: `WARM_UP_STEPS` untimed steps, then timed ones for `seconds`, but at
    least `LEAST_STEPS`. `peer_row_tokens` is the row of a packing peer, None the same as ours;
    `peer_batch` a padding peer's examples a forward. `checkpointing` is our own side's alone, and
    so is `base_dtype`, but nf4, which is for all. `backend`: cpu or cuda. `processes` share the
    cores, the batch, or the GPUs; `threads` are of each.
    """

    side: str
    workload: Workload
    rank: int = 16
    threads: int | None = None
    seconds: float = 30.0
    seed: int = 0
    peer_row_tokens: int | None = None
    peer_checkpointing: bool = False
    checkpointing: bool = False
    base_dtype: str = "auto"
    backend: str = "cpu"
    peer_batch: int = 4
    processes: int = 1

    def to_json(self) -> str:
        """One line that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The task that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "workload": Workload(**values["workload"])})


def require_peer(peer: str) -> None:
    """Raises UserError for a peer that does not exist, EnvironmentProblem where it is missing."""
    if peer not in PEERS:
        raise UserError(f"no peer {peer!r}: choose one of {', '.join(PEERS)}")
    if peer.startswith("trl") and installed("trl") is None:
        raise EnvironmentProblem(f"peer {peer}: trl is not installed: run `make peers`")
    if peer in IPEX_CONTENDERS:
        _require_ipex(peer)


def python_of(side: str) -> str:
    """The Python that runs a side: this one, or for IPEX's that of `make setup-ipex`, beside this
    environment, or the one that `IPEX_PYTHON` names.
    """
    if (
        side not in IPEX_CONTENDERS
        or ipex.mismatch(installed(ipex.PACKAGE), installed("torch")) is None
    ):
        return sys.executable
    return os.environ.get(IPEX_PYTHON) or str(
        Path(sys.prefix).with_name(".venv-ipex") / "bin/python"
    )


def _require_ipex(peer: str) -> None:
    python = python_of(peer)
    asked = "from intel_ft.backends.ipex import require; require()"
    try:
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    except OSError:
        raise EnvironmentProblem(
            f"peer {peer}: no {python}: run `make setup-ipex`, or set {IPEX_PYTHON} to a Python "
            "that has IPEX"
        ) from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1].partition(": ")[2]
        raise EnvironmentProblem(f"peer {peer}: {python}: {reason}")
