"""Keeps packages that training seldom needs out of each rank's memory until something uses them.

peft and Transformers import, for names that they may never use, torch's compiler (`torch._dynamo`),
FSDP and its tensors, together 65 MiB of private memory with SymPy, and `datasets` with pandas and
PyArrow, 50 MiB. Here they get stand-ins, which import the real ones at first use.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType, SimpleNamespace
from typing import Any

_DYNAMO = "torch._dynamo"
_TENSORS = "torch.distributed.tensor"
_DEFERRED = (
    f"{_DYNAMO}._trace_wrapped_higher_order_op",  # Transformers' masks
    # Transformers from 5.6 on
    _TENSORS,
    f"{_TENSORS}.placement_types",
    "torch.distributed.fsdp",
    "torch.distributed._composable.fsdp",
    "datasets",  # its Trainer
)


@contextmanager
def lazy_imports() -> Iterator[None]:
    """Have what is imported inside the block take names of the modules above without them.

    Afterwards imports of these modules are as usual, but for `torch._dynamo`: a small module
    answers for it what eager code asks, and anything else, such as `torch.compile`, imports the
    real one in its place. Modules that are imported already stay.
    """
    import torch

    stand_ins = [_Module(name) for name in _DEFERRED if name not in sys.modules]
    dynamo = None if _DYNAMO in sys.modules else _Dynamo(find_spec(_DYNAMO))
    sys.modules.update({module.__name__: module for module in stand_ins})
    if dynamo is not None:
        sys.modules[_DYNAMO] = torch._dynamo = dynamo
        sys.meta_path.insert(0, _DynamoFinder(dynamo))
    if torch.distributed.is_available() and not hasattr(torch.distributed, "tensor"):
        torch.distributed.tensor = _Module(_TENSORS)  # peft uses it without importing it
    try:
        yield
    finally:
        if dynamo is not None:
            dynamo.importing = False
        for module in stand_ins:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


class _Module(ModuleType):
    """What stands for a module in `import x` and `from x import y`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self or name == "DTensor":
            return _Deferred(name, (), {"origin": self.__name__})
        return getattr(importlib.import_module(self.__name__), name)


class _Deferred(type):
    """A class or function of a module that is not imported yet; it may be called and asked."""

    origin: str

    def real(cls) -> Any:
        """What it stands for, imported now."""
        if isinstance(sys.modules.get(cls.origin), _Module):
            del sys.modules[cls.origin]
        return getattr(importlib.import_module(cls.origin), cls.__name__)

    def __call__(cls, *args: Any, **options: Any) -> Any:
        return cls.real()(*args, **options)

    def __instancecheck__(cls, value: Any) -> bool:
        return cls._is_there() and isinstance(value, cls.real())

    def __subclasscheck__(cls, other: type) -> bool:
        return cls._is_there() and issubclass(other, cls.real())

    def _is_there(cls) -> bool:
        return not isinstance(sys.modules.get(cls.origin), _Module | None)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls.real(), name)


class _NeverCompiled:
    """The class of compiled modules, while there are none."""


class _Dynamo(ModuleType):
    """What stands for `torch._dynamo` until something needs the real module.

    importing: whether the packages that training needs are being imported.
    """

    def __init__(self, spec: ModuleSpec | None) -> None:
        super().__init__(_DYNAMO)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        self.__spec__, self.__path__ = spec, list(spec.submodule_search_locations)
        self.importing = True
        self.marked: list[tuple[str, Any]] = []
        self.eval_frame = SimpleNamespace(OptimizedModule=_NeverCompiled)  # Accelerate
        # init_process_group clears a cache that is still empty.
        self.trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    def graph_break(self, msg: str = "") -> None:
        """Nothing, outside of compiled code: torch's optimizers call it at each step."""

    def allow_in_graph(self, fn: Any) -> Any:
        """The function as it is; the real module is told when it is imported."""
        self.marked.append(("allow_in_graph", fn))
        return fn

    def assume_constant_result(self, fn: Any) -> Any:
        """The same."""
        self.marked.append(("assume_constant_result", fn))
        return fn

    def disable(
        self,
        fn: Callable[..., Any] | None = None,
        recursive: bool = True,
        *,
        wrapping: bool = True,
        **options: Any,
    ) -> Any:
        """The function as it is, for torch's own eager code (wrapping=False) and while importing.

        Outside of compiled code torch's does the same. Whoever else excludes a function from
        compilation is about to compile.
        """
        if wrapping and not self.importing:
            return self.load().disable(fn, recursive, **options)
        if fn is None:
            return functools.partial(self.disable, recursive=recursive, wrapping=wrapping)
        return fn

    def load(self) -> Any:
        """The real module, imported in place of this one."""
        import torch

        if sys.modules.get(_DYNAMO) is self:
            waiting = [name for name in _DEFERRED if isinstance(sys.modules.get(name), _Module)]
            for name in (_DYNAMO, *waiting):
                del sys.modules[name]
            del torch._dynamo
            real = importlib.import_module(_DYNAMO)
            for mark, fn in self.marked:
                getattr(real, mark)(fn)
        return importlib.import_module(_DYNAMO)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.load(), name)


class _DynamoFinder:
    """Imports the real `torch._dynamo` before the first of its submodules."""

    def __init__(self, stand_in: _Dynamo) -> None:
        self._stand_in = stand_in

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder. None leaves the search to the other finders."""
        if not name.startswith(f"{_DYNAMO}.") or sys.modules.get(_DYNAMO) is not self._stand_in:
            return None
        self._stand_in.load()
        module = sys.modules.get(name)  # most submodules come with it
        return None if module is None else spec_from_loader(name, _Loaded(module))


class _Loaded(Loader):
    """A loader of a module that is loaded."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See importlib.abc.Loader."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """See importlib.abc.Loader. The import system has set another spec."""
        module.__spec__ = self._spec
