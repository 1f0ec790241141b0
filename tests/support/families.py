"""tools/architectures.py as a module: the shapes of its model families, for tests."""

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[2] / "tools" / "architectures.py"
_SPEC = importlib.util.spec_from_file_location("architectures", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
architectures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(architectures)
