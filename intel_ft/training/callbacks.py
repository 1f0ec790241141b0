"""Experiment trackers by name, and the user's own callbacks by import path."""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from intel_ft.config import Config
from intel_ft.config_sections import TrainConfig
from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError, missing_package

logger = logging.getLogger(__name__)


def require_trackers(settings: TrainConfig) -> None:
    """Raise EnvironmentProblem for a tracker in `train.report_to` that is not installed.

    TensorBoard is the default, so a run goes without it where it is missing.
    """
    for tracker in settings.report_to:
        if tracker != "tensorboard" and find_spec(tracker) is None:
            raise EnvironmentProblem(
                f"train.report_to: {tracker} is not installed: pip install {tracker}"
            )


def trackers(config: Config) -> list[TrainerCallback]:
    """Transformers' callback for each tracker in `train.report_to` that is installed."""
    callbacks: list[TrainerCallback] = []
    for tracker in config.train.report_to:
        if tracker == "tensorboard":
            callbacks += _tensorboard(config.output.directory / "tensorboard")
        elif tracker == "wandb":
            from transformers.integrations import WandbCallback

            callbacks.append(WandbCallback())
        else:
            from transformers.integrations import MLflowCallback

            callbacks.append(MLflowCallback())
    return callbacks


def _tensorboard(folder: Path) -> list[TrainerCallback]:
    if find_spec("tensorboard") is None:
        logger.warning("train.report_to: tensorboard is not installed: no log is written for it")
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(folder))]


def user_callbacks(paths: list[str]) -> list[TrainerCallback]:
    """An instance of each class. Raises UserError if one cannot be imported or constructed."""
    callbacks = []
    for path in paths:
        try:
            callbacks.append(_callback_class(path)())
        except IntelFTError:
            raise
        except Exception as error:
            if missing := missing_package(error):
                raise missing from error
            raise _refused(
                path, f"its constructor raised {type(error).__name__}: {error}"
            ) from error
    return callbacks


def _callback_class(path: str) -> Any:
    """The class at `module:Class`; the working folder is searched for modules, too."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise _refused(path, "write it as module:Class")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = vars(import_module(module)).get(name)
    except Exception as error:  # whatever the user's module raises
        missing = missing_package(error)
        if missing and not _names_the_module(error, module):
            raise missing from error
        raise _refused(path, f"{type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, TrainerCallback)):
        raise _refused(path, f"it has no subclass of transformers.TrainerCallback named {name}")
    return loaded


def _names_the_module(error: Exception, module: str) -> bool:
    """Whether an import failed because the user's module, or a package around it, is absent."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name is not None and f"{module}.".startswith(f"{name}.")


def _refused(path: str, why: str) -> UserError:
    return UserError(f"train.callbacks: {path}: {' '.join(why.split())}")
