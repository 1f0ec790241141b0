"""`intel_ft.json`: where an adapter, merged model or IR came from.

It is written into every such folder, and read by eval, merge, export, generate and chat.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from intel_ft.errors import UserError
from intel_ft.files import write_json

FILE = "intel_ft.json"


@dataclass(frozen=True)
class StartAdapter:
    """The adapter that a run started from: a Hub id or the name of its folder; continue or merge.

    weights: the fingerprint of its weights (artifacts.fingerprints.weights_fingerprint).
    """

    name: str
    mode: str
    weights: str


@dataclass(frozen=True)
class Provenance:
    """The id of the base model (also after merging), and how prompts were formed in training.

    `base_weights`: fingerprint of the base's weights (models.load.fingerprint), for adapters only.
    `base_int4`: digest of the int4 weights that the adapter was trained on, if it was.
    `needs_int4`: whether it makes up for their rounding (method.init=loftq), so that it fits no
    other weights.
    `loss_on`: the run's data.loss_on; None in a folder that does not say it. `start_adapter`: what
    the run started from, besides the base.
    """

    kind: str  # "adapter", "merged" or "openvino"
    base_model: str
    base_revision: str | None
    template: str
    system_prompt: str | None
    version: str
    base_weights: str | None = None
    base_int4: str | None = None
    needs_int4: bool = False
    loss_on: str | None = None
    start_adapter: StartAdapter | None = None

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""
        write_json(folder / FILE, asdict(self))

    @staticmethod
    def load(folder: Path) -> "Provenance | None":
        """Read it from `folder`; None where the folder has none."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if start := values.get("start_adapter"):
                values["start_adapter"] = StartAdapter(**start)
            return Provenance(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a provenance record ({error})") from None
