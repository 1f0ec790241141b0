"""Import the optional OpenVINO packages, or say what to install; keep torch from loading."""

import importlib
import sys

from intel_ft.errors import EnvironmentProblem


def block_torch_import() -> None:
    """Hide torch from Transformers, so that a tokenizer does not import it (seconds, 0.3 GiB).

    For a process that runs an IR and nothing else: a later import of torch fails. Transformers
    5.5 has no setting for this; it looks with `importlib.util.find_spec`, which finds no module
    where sys.modules has None. If torch is already imported, nothing changes.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def require_openvino(*modules: str) -> None:
    """Import `modules`; raise EnvironmentProblem, with what to install, where one is missing.

    Call it before anything imports openvino. OpenVINO and NNCF report each import and conversion to
    Google Analytics through openvino_telemetry (2025.2), from forked processes that wait for the
    network. Both work without that package, so its import is blocked here.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                f"OpenVINO models need the package {error.name}, which is not installed: "
                "pip install 'intel_ft[openvino]'"
            ) from None
        except ImportError as error:
            raise EnvironmentProblem(
                f"{module} cannot be imported ({error}): pip install 'intel_ft[openvino]' installs "
                "versions that fit together"
            ) from error
