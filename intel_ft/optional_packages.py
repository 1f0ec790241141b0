"""Optional packages: import those that OpenVINO needs, and keep away those that nothing needs."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from intel_ft.errors import EnvironmentProblem
from intel_ft.gc_pause import gc_paused
from intel_ft.versions import installed


def block_torch_import() -> None:
    """Hide torch from Transformers, so that a tokenizer does not import it (seconds, 0.3 GiB).

    For a process that runs an IR and nothing else: a later import of torch fails. Transformers
    5.5 has no setting for this; it looks with `importlib.util.find_spec`, which finds no module
    where sys.modules has None. If torch is already imported, nothing changes.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def hide_broken_torchvision() -> None:
    """Hide torchvision from Transformers where its build cannot load beside the installed torch.

    optimum-intel depends on torchvision, which text models do not need. Beside a CPU build of torch
    (`2.13.0+cpu`) PyPI's torchvision is a CUDA build: importing it fails, and with it every import
    of a Transformers model. A torchvision that matches torch stays visible.
    """
    builds = {"+" in (installed(package) or "") for package in ("torch", "torchvision")}
    if len(builds) == 2 and installed("torchvision") is not None:
        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]


def import_peft() -> None:
    """Import peft without bitsandbytes, scikit-learn and SciPy: 2 s of the start of a run.

    peft 0.21 imports bitsandbytes, which imports Inductor, for models that it quantized;
    Transformers 5.5 imports scikit-learn for assisted generation and SciPy for the loss of object
    detection. Nothing here uses them so; NF4 calls bitsandbytes itself. Each can be imported as
    usual afterwards. The imported objects are excluded from garbage collection: they stay until the
    process ends, and to search them takes a third of a second. Later calls do nothing: they would
    also keep what a run has left behind.
    """
    if "peft" in sys.modules:
        return
    with gc_paused(), hidden("bitsandbytes", "sklearn", "scipy"):
        if "transformers" in sys.modules:  # it caches whether they are installed
            from transformers.utils import import_utils

            import_utils.is_sklearn_available.cache_clear()
            import_utils.is_scipy_available.cache_clear()
        import peft  # noqa: F401
    gc.freeze()


def import_trainer() -> None:
    """Import Transformers' Trainer without datasets, pandas and PyArrow: 50 MiB of a rank's memory.

    Transformers 5.5 imports datasets to ask whether a data set is one of its own. Here the Trainer
    gets it when it asks. Where datasets is loaded already, nothing is different.
    """
    if "transformers.trainer" in sys.modules:
        return
    from transformers.utils import import_utils

    import_utils.is_datasets_available.cache_clear()
    with gc_paused(), hidden("datasets"):
        trainer = importlib.import_module("transformers.trainer")
    import_utils.is_datasets_available.cache_clear()
    if not hasattr(trainer, "datasets"):
        trainer.datasets = _AtFirstUse("datasets")  # type: ignore[attr-defined]


class _AtFirstUse:
    """A module that is imported when it is asked for one of its names."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self._module), name)


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Let peft add LoRA layers without importing bitsandbytes, and with it Inductor: 1 s.

    peft asks at every layer whether bitsandbytes is installed, and remembers the answer; it is
    forgotten afterwards, so that peft on a model that bitsandbytes quantized works as usual.
    """
    from peft import import_utils

    questions = (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available)
    with hidden("bitsandbytes"):
        for question in questions:
            question.cache_clear()
        try:
            yield
        finally:
            for question in questions:
                question.cache_clear()


@contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """Let modules that are not loaded yet look as if they were not installed."""
    absent = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in absent:
            del sys.modules[module]


def require_openvino(*modules: str) -> None:
    """Import `modules`; raise EnvironmentProblem, with what to install, where one is missing.

    Call it before anything imports openvino. OpenVINO and NNCF report each import and conversion to
    Google Analytics through openvino_telemetry (2025.2), from forked processes that wait for the
    network. Both work without that package, so its import is blocked here.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for module in modules:
        try:
            with gc_paused():
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
