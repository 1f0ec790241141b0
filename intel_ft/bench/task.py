"""The contenders of a training benchmark, and the description of one run of one of them.

Imports nothing heavy.
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
EAGER_EXPERTS = "transformers-eager"
"""Transformers' Trainer with its loop over a mixture's experts, where `transformers` groups them.

The third implementation, batched_mm, copies the weights of its experts for each token.
"""
PEERS = ("trl", "trl-packed", "transformers", EAGER_EXPERTS, *IPEX_CONTENDERS)
IPEX_PYTHON = "INTEL_FT_IPEX_PYTHON"
"""Environment variable: the Python that runs the contenders that need IPEX."""
WARM_UP_STEPS = 2
GPU_WARM_UP_STEPS = 5  # CUDA loads a GEMM kernel when a row of a new length first needs it
MIN_TIMED_STEPS = 5
LONG_STEP = 60.0  # seconds; longer steps: one warm-up step, and at least two timed ones


@dataclass(frozen=True)
class Task:
    """One run of one contender.

    It takes `WARM_UP_STEPS` untimed steps, then timed steps for `seconds`, at least
    `MIN_TIMED_STEPS`. `peer_row_tokens` is the row length of a peer that packs (None: the own
    trainer's), `peer_batch` the examples per forward pass of a peer that pads. `checkpointing` and
    `base_dtype` apply to the own trainer only, except for nf4, which applies to all contenders.
    `backend` is cpu or cuda. `processes` share the batch and the cores or GPUs; `threads` is the
    number for each process.
    """

    contender: str
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
        """The task as one line of JSON, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The task that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "workload": Workload(**values["workload"])})


def require_peer(peer: str) -> None:
    """Raise UserError for an unknown peer, EnvironmentProblem for one that is not installed."""
    if peer not in PEERS:
        raise UserError(f"unknown peer {peer!r}: choose one of {', '.join(PEERS)}")
    if peer.startswith("trl") and installed("trl") is None:
        raise EnvironmentProblem(f"peer {peer}: trl is not installed; run `make peers`")
    if peer in IPEX_CONTENDERS:
        _require_ipex(peer)


def python_of(contender: str) -> str:
    """The Python that runs a contender.

    That is this Python. A contender that needs IPEX gets the Python that `IPEX_PYTHON` names, else
    that of the environment which `make setup-ipex` creates next to this one.
    """
    if (
        contender not in IPEX_CONTENDERS
        or ipex.mismatch(installed(ipex.PACKAGE), installed("torch")) is None
    ):
        return sys.executable
    return os.environ.get(IPEX_PYTHON) or str(
        Path(sys.prefix).with_name(".venv-ipex") / "bin/python"
    )


def _require_ipex(peer: str) -> None:
    python = python_of(peer)
    code = "from intel_ft.backends.ipex import require; require()"
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        raise EnvironmentProblem(
            f"peer {peer}: {python} does not exist: run `make setup-ipex`, or set {IPEX_PYTHON} to "
            "a Python that has IPEX"
        ) from None
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1].partition(": ")[2]
        raise EnvironmentProblem(f"peer {peer}: {python}: {reason}")
