"""The optional packages that OpenVINO work needs; called from export and inference.openvino_lm."""

import importlib
import sys

from intel_ft.errors import EnvironmentProblem


def block_torch_import() -> None:
    """Let Transformers find no torch, so that a tokenizer does not import it (seconds, 0.3 GiB).

    For a process that will run an IR and nothing else: whoever imports torch afterwards fails.
    Transformers 5.5 has no setting for it; it looks with `importlib.util.find_spec`, which a None
    in sys.modules ends. Where torch is imported already, nothing changes.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def require_openvino(*modules: str) -> None:
    """Import `modules`, or raise EnvironmentProblem saying what to install.

    Call it before anything imports openvino. OpenVINO and NNCF report each import and conversion to
    Google Analytics through openvino_telemetry (2025.2), from forked processes that wait for the
    network; both do without the package where it cannot be imported, so it cannot be.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                f"{error.name} is not installed, which OpenVINO models need: "
                "pip install 'intel_ft[openvino]'"
            ) from None
        except ImportError as error:
            raise EnvironmentProblem(
                f"{module} does not load beside the installed packages ({error}): "
                "pip install 'intel_ft[openvino]' brings versions that fit"
            ) from error
