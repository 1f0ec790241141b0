"""How many ranks were the fastest on such a host for such a model, as `bench.tune` measured it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.decisions import Decision
from intel_ft.distributed.placement import ranks_per_host
from intel_ft.files import user_cache, write_json
from intel_ft.host import topology
from intel_ft.host.cpu import cpu_flags, cpu_name
from intel_ft.host.launcher_env import LauncherEnv
from intel_ft.host.topology import Topology
from intel_ft.versions import installed

if TYPE_CHECKING:  # doctor runs without the packages that it needs
    from intel_ft.config import Config

SHAPE = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "num_experts", "num_experts_per_tok", "moe_intermediate_size"),
)
"""What the speed of a layer depends on, by its name in config.json."""


def chosen_ranks(host: Topology, config: "Config | None") -> tuple[int, str]:
    """How many ranks to start on this host, and why: as measured here, else as measured on others.

    config: of the run, None where it is not known. One rank for a run that GPUs may compute.
    """
    if config is not None and (measured := tuned_ranks(host, config)) is not None:
        return measured
    if "amx_bf16" in cpu_flags() and _on_cpus(config):
        ranks, why = ranks_per_host(host, amx=True)
        if config is None or ranks <= config.train.global_batch_size:
            return ranks, why
    return ranks_per_host(host)


def _on_cpus(config: "Config | None") -> bool:
    """Whether the ranks compute on this host's CPUs with layers of intel_ft."""
    if config is None:
        return True
    from intel_ft.backends.choice import choose  # it imports torch

    return choose(config).value == "cpu"


def ranks_instead(config: "Config") -> list[Decision]:
    """For a run that no launcher started: that more ranks would be faster here, if they would."""
    if LauncherEnv.detect().size > 1 or config.backend.threads != "auto":
        return []
    ranks, why = chosen_ranks(topology.read(), config)
    if ranks == 1:
        return []
    return [Decision("ranks", "1", f"`intel-ft launch` starts {ranks} here: {why}")]


def tuned_ranks(host: Topology, config: "Config") -> tuple[int, str] | None:
    """The fastest number of ranks for such a model on such a host; None if it was not measured."""
    try:
        entry = json.loads(_file().read_text(encoding="utf-8"))[_key(host, config)]
        return int(entry["ranks"]), str(entry["reason"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # the last: no home folder
        return None


def keep_tuned(host: Topology, config: "Config", ranks: int, reason: str) -> None:
    """Keep what was measured for `tuned_ranks`."""
    path, entries = _file(), {}
    with suppress(OSError, ValueError):
        entries = json.loads(path.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, entries | {_key(host, config): {"ranks": ranks, "reason": reason}})


def model_shape(config: "Config") -> dict[str, Any]:
    """The dimensions of the config's model, by their names in config.json; {} if unreadable."""
    from intel_ft.models.tokenizer import model_folder  # it imports numpy

    try:
        path = model_folder(config.model, weights=False) / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values = values.get("text_config", values)
        return {name: values[name] for name in (*SHAPE, "num_hidden_layers") if values.get(name)}
    except Exception:  # no such model, or it is on the Hub: the run itself says so
        return {}


def _key(host: Topology, config: "Config") -> str:
    shape = {name: value for name, value in model_shape(config).items() if name in SHAPE}
    machine = f"{cpu_name()}, {host.usable} cores, {len(host.nodes)} NUMA nodes"
    dtype = f"{config.model.dtype} {config.base_dtype} prepack={config.backend.prepack}"
    batch = f"{config.train.global_batch_size} examples, rows {config.train.max_tokens_per_row}"
    versions = f"intel_ft {installed('intel_ft')}, torch {installed('torch')}"
    return f"{machine}; {json.dumps(shape, sort_keys=True)}; {dtype}; {batch}; {versions}"


def _file() -> Path:
    return user_cache("layout.json")
