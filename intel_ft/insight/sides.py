"""The sides of a training benchmark: which there are, whether they are installed, and what one run
of a side is asked to do; called from insight. Imports nothing heavy.
"""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.insight.workloads import Workload

OURS = "ours"
PEERS = ("trl", "trl-packed", "transformers", "ipex")
WARM_UP_STEPS = 2
GPU_WARM_UP_STEPS = 5  # CUDA loads a product's kernel when a row of a new length first needs it
LEAST_STEPS = 5
LONG_STEP = 60.0  # seconds; where a step takes longer, one is warm-up and at least two are timed


@dataclass(frozen=True)
class Task:
    """One run of one side: `WARM_UP_STEPS` untimed steps, then timed ones for `seconds`, but at
    least `LEAST_STEPS`. `peer_row_tokens` is the row of a packing peer, None the same as ours;
    `peer_batch` a padding peer's examples a forward. `checkpointing` is our own side's alone, and
    so is `base_dtype`, but nf4, which is for all. `backend`: cpu or cuda.
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
    if peer == "ipex":
        # Versions first: on a mismatch its import ends the process (os.exit does not exist).
        ipex, torch = installed("intel_extension_for_pytorch"), installed("torch")
        if ipex is None or torch is None or not torch.startswith("2.8."):
            raise EnvironmentProblem(
                "peer ipex: needs intel_extension_for_pytorch 2.8 and torch 2.8 in an environment "
                f"of their own; here are {ipex or 'none'} and {torch}"
            )


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
