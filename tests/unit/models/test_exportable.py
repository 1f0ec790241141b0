"""What cannot be exported is known from a table, which is Optimum-Intel's own statement."""

import json
from importlib.util import find_spec

import pytest
from support.families import architectures
from support.harness import DATA, MODEL, write_config
from transformers import AutoConfig

from intel_ft.artifacts.resolve import resolve
from intel_ft.config import load
from intel_ft.config_method import MethodConfig
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export import convert
from intel_ft.export.context import ModelToExport
from intel_ft.models import exportable
from intel_ft.models.exportable import (
    TABLE,
    export_decision,
    is_compared,
    older_packages,
    why_not_exportable,
)
from intel_ft.models.load import loaded_model_type
from intel_ft.training.setup import read_inputs


@pytest.fixture(autouse=True)
def _no_packages(tmp_path, monkeypatch) -> None:
    """As for a user who has no older Transformers in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.skipif(find_spec("optimum") is None, reason="needs the openvino extra")
def test_the_table_is_what_the_locked_optimum_intel_states() -> None:
    assert json.loads(TABLE.read_text(encoding="utf-8")) == architectures.optimum_limits()


@pytest.mark.parametrize(
    ("model_type", "version", "reason"),
    [
        ("llama", "5.5.4", None),
        ("gemma2", "5.5.4", None),  # lifted
        ("lfm2", "5.4.0", None),
        ("lfm2", "5.5.4", "up to 5.4.0, here is 5.5.4"),
        ("qwen3_next", "4.57.6", None),
        ("qwen3_next", "4.58.0", "up to 4.57.6, here is 4.58.0"),
        ("qwen3_5_text", "5.2.3", None),
        ("qwen3_5_text", "5.5.4", "up to 5.2.99"),
        ("granitemoehybrid", "5.4.0", "from 5.5.0, here is 5.4.0"),
        ("olmo3", "5.5.4", "no export of model_type olmo3"),
        ("glm4_moe", "5.5.4", "no export of model_type glm4_moe"),
    ],
)
def test_limits_are_compared_with_the_installed_transformers(
    model_type, version, reason, monkeypatch
) -> None:
    versions = {"transformers": version, "optimum-intel": exportable.table_version()}
    monkeypatch.setattr(exportable, "installed", versions.get)
    found = why_not_exportable(model_type)
    assert found is None if reason is None else reason in found
    assert export_decision(model_type).value == ("yes" if reason is None else "no")


def test_a_limit_is_lifted_for_the_locked_optimum_intel_alone(monkeypatch) -> None:
    versions = {"transformers": "5.5.4", "optimum-intel": "2.3.0"}
    monkeypatch.setattr(exportable, "installed", versions.get)
    assert "up to 5.0" in why_not_exportable("gemma2")


def test_families_that_are_exported_as_reward_models() -> None:
    assert why_not_exportable("llama", scores=True) is None
    for model_type in ("mixtral", "gemma2"):
        assert why_not_exportable(model_type) is None
        assert "no export of a sequence classifier" in why_not_exportable(model_type, scores=True)
    assert export_decision("mixtral", scores=True).reason.endswith("merge and eval work")


def test_a_multimodal_model_counts_as_what_it_is_loaded_as() -> None:
    assert loaded_model_type(AutoConfig.for_model("qwen3_5")) == "qwen3_5_text"
    assert loaded_model_type(AutoConfig.for_model("gemma3")) == "gemma3"
    assert loaded_model_type(AutoConfig.for_model("llama")) == "llama"


@pytest.mark.parametrize("name", ["lora", "full"])
def test_plan_and_validate_get_the_decisions_from_the_counted_model(name, tmp_path) -> None:
    path = write_config(
        tmp_path / "config.yaml",
        model={"name_or_path": str(MODEL)},
        data={"train": str(DATA), "split": "train[:8]"},
    )
    config = load(path).model_copy(update={"method": MethodConfig(name=name)})
    model = read_inputs(config).model
    names = [decision.name for decision in model.decisions]
    adapter = ["adapted modules", "modules left frozen"] if name == "lora" else []
    assert names == [*adapter, "export to OpenVINO"]


def test_export_refuses_before_it_merges(tmp_path) -> None:
    architectures.write_model(*architectures.FAMILIES["OLMo 3"], tmp_path)
    source = ModelToExport(
        resolve(str(tmp_path)), None, trust_remote_code=False, allow_pickle=False
    )
    with pytest.raises(UserError, match="no export of model_type olmo3"):
        source.refuse_unexportable()


def test_export_uses_an_older_transformers_once_its_packages_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "intel_ft" / "export" / "transformers-5.4.0"
    command = f"`pip install --no-deps --target {folder} transformers==5.4.0`"
    assert command in why_not_exportable("lfm2")
    assert not is_compared("lfm2") and export_decision("lfm2").value == "no"
    (folder / "transformers-5.4.0.dist-info").mkdir(parents=True)
    assert older_packages("lfm2") == folder and is_compared("lfm2")
    decision = export_decision("lfm2")
    assert decision.value == "yes" and "transformers-5.4.0, which checks" in decision.reason
    assert older_packages("llama") is None and older_packages("mamba") is None


def test_the_older_packages_come_first_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Run with a package of that folder in place of Optimum-Intel's exporters."""
    exporters = tmp_path / "packages" / "optimum" / "exporters" / "openvino"
    exporters.mkdir(parents=True)
    said = "def main_export(source, output, **options):\n    raise ValueError(options['task'])\n"
    (exporters / "__init__.py").write_text(said)
    intel = tmp_path / "packages" / "optimum" / "intel"
    intel.mkdir()
    (intel / "__init__.py").write_text("OVConfig = dict\n")
    monkeypatch.setattr(convert, "older_packages", lambda _: tmp_path / "packages")
    architectures.write_model(*architectures.FAMILIES["OLMo 3"], tmp_path / "base")
    with pytest.raises(IntelFTError, match=r"export with packages: ValueError: text-generation"):
        convert.convert(tmp_path / "base", tmp_path / "ir", "base", trust_remote_code=False)
