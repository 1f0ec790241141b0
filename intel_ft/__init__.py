"""Fine-tune language models on Xeon clusters and export them to OpenVINO, from one YAML file.

The verbs of the command line are functions here, too; `intel_ft.api` documents them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from intel_ft.optional_packages import hide_broken_torchvision

if TYPE_CHECKING:
    from intel_ft.api import evaluate, export, generate, load_config, load_model, merge, train
    from intel_ft.runtimes.language_model import Sampling

__version__ = "0.1.0"
__all__ = [
    "Sampling",
    "__version__",
    "evaluate",
    "export",
    "generate",
    "load_config",
    "load_model",
    "merge",
    "train",
]

# `intel_ft.export` is the function, also after the package of that name has been imported: Python
# binds a package in its parent when it is first imported, which is here, and not again.
importlib.import_module("intel_ft.export")
del globals()["export"]


hide_broken_torchvision()  # here, because it must come before any import of Transformers


def __getattr__(name: str) -> Any:
    """Import a name above from its module when it is first used: `import intel_ft` stays fast."""
    if name in __all__:
        module = "runtimes.language_model" if name == "Sampling" else "api"
        return getattr(importlib.import_module(f"intel_ft.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
