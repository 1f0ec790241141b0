"""The optional packages that OpenVINO work needs; called from export and inference.openvino_lm."""

import importlib
import sys

from intel_ft.errors import EnvironmentProblem


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
