"""`intel_ft.json`: what a folder of ours came from; written beside every adapter, merged model
and IR, and read by eval, merge, export, generate and chat.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from intel_ft.errors import UserError
from intel_ft.files import write_json

FILE = "intel_ft.json"


@dataclass(frozen=True)
class Provenance:
    """The base model's own id (also after merging) and how prompts were formed in training.

    `base_weights`: what tells the base from another one (models.load.fingerprint), of an adapter
    only.
    """

    kind: str  # "adapter", "merged" or "openvino"
    base_model: str
    base_revision: str | None
    template: str
    system_prompt: str | None
    version: str
    base_weights: str | None = None

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""
        write_json(folder / FILE, asdict(self))

    @staticmethod
    def load(folder: Path) -> "Provenance | None":
        """Read it from `folder`; None where the folder is not one of ours."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return Provenance(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: not a provenance record ({error})") from None
