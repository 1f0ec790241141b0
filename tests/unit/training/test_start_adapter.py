"""A run that starts from an adapter: it goes on where that ended, or begins a new one on top."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_runs import config_in, fill

from intel_ft.artifacts.provenance import Provenance
from intel_ft.config import build
from intel_ft.errors import UserError
from intel_ft.models.adapter import WEIGHTS
from intel_ft.models.load import load_base
from intel_ft.models.saved_adapter import apply_adapter
from intel_ft.training.run import train
from intel_ft.training.setup import read_inputs
from intel_ft.training.start import check_adapter, with_adapter

# Each step takes the whole data and keeps no state, so only the weights carry over.
STATELESS = {"optimizer": "sgd", "scheduler": "constant", "learning_rate": 0.5}


@pytest.fixture(scope="module")
def first(bases, tmp_path_factory):
    """A finished run of two steps, which later ones start from; tests only read it."""
    folder = tmp_path_factory.mktemp("first")
    fill(folder, bases)
    train(config_in(folder, max_steps=2, **STATELESS))
    return folder


def start_from(folder: Path, first: Path, *, model=None, method=None, name="second", **settings):
    """The config of a run on the base of `first` that starts from its adapter."""
    config = config_in(first, **({"max_steps": 2} | STATELESS | settings))
    values = config.model_dump()
    values["method"] = method or {}
    values["model"] |= {"adapter": str(first / "run")} | (model or {})
    values["output"] = {"directory": str(folder / name)}
    return build(values, "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_continued_equals_a_run_that_was_not_cut(bases, first, tmp_path) -> None:
    fill(tmp_path, bases)
    train(config_in(tmp_path, max_steps=4, **STATELESS))
    train(start_from(tmp_path, first))
    torch.testing.assert_close(
        losses(first / "run") + losses(tmp_path / "second"), losses(tmp_path / "run")
    )
    whole, cut = weights(tmp_path / "run"), weights(tmp_path / "second")
    begun = weights(first / "run")
    for name, weight in whole.items():
        torch.testing.assert_close(cut[name], weight, rtol=1e-4, atol=1e-6)
        assert not torch.equal(begun[name], cut[name])
    record = Provenance.load(tmp_path / "second" / "adapter")
    assert record is not None and record.start_adapter is not None
    assert (record.start_adapter.name, record.start_adapter.mode) == ("run", "continue")


def test_its_settings_are_the_adapters(first, tmp_path) -> None:
    config = with_adapter(start_from(tmp_path, first))
    assert (config.method.r, config.method.alpha) == (4, 32)
    same = {"r": 4, "target_modules": "all-linear"}  # by another name
    assert with_adapter(start_from(tmp_path, first, method=same)).method.r == 4
    for key, value in (("r", 8), ("use_dora", True), ("target_modules", ["q_proj"])):
        with pytest.raises(UserError, match=rf"method\.{key}=.*: leave it out"):
            with_adapter(start_from(tmp_path, first, method={key: value}))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_merged_first_and_saved_for_the_base_as_it_was(first, tmp_path, targets) -> None:
    start = shutil.copytree(first / "run" / "adapter", tmp_path / "start")
    config = start_from(
        tmp_path,
        first,
        model={"adapter_mode": "merge", "adapter": str(start)},
        method={"r": 2, "alpha": 8, "target_modules": targets},
        max_steps=4,
        optimizer="adamw_torch",
        learning_rate=0.01,
    )
    train(config)
    run = tmp_path / "second"
    # It begins at the loss that the first run would have had next.
    follow = start_from(tmp_path, first, name="follow", max_steps=1)
    train(follow)
    assert losses(run)[0] == pytest.approx(losses(tmp_path / "follow")[0], abs=1e-5)
    stored = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"]) == (2 + 4, 8 / 2 * 6)
    # On the base as it was, it computes what base + first + new do.
    ids = torch.arange(3, 40)[None]
    base = load_base(config.model.base, torch.float32)
    joined = apply_adapter(base, run / "adapter")(ids).logits
    tensors = {name: w.clone() for name, w in weights(run).items()}
    wanted = load_base(config.model.base, torch.float32)
    wanted = apply_adapter(wanted, first / "run" / "adapter").merge_and_unload()
    names = {name.removesuffix(".lora_A.weight") for name in tensors}
    for name in {name for name in names if ".lora_" not in name}:
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        layer = wanted.get_submodule(name.removeprefix("base_model.model."))
        layer.weight.data += 4.0 * b[:, :2] @ a[:2]
    torch.testing.assert_close(joined, wanted(ids).logits, rtol=1e-3, atol=1e-4)
    # A resumed run takes nothing of the adapter, which changed since, and ends at the same bytes.
    save_file(
        {name: 2 * weight for name, weight in load_file(start / WEIGHTS).items()}, start / WEIGHTS
    )
    finished = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoint-4")
    train(config, resume=True)
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == finished


def _as_dora(first: Path, folder: Path) -> Path:
    """The adapter of `first` as DoRA, with its own magnitudes."""
    shutil.copytree(first / "run" / "adapter", folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    base = load_base(config_in(first).model, torch.float32)
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        norm = base.get_submodule(layer).weight.norm(dim=1)
        tensors[name.replace("lora_A.weight", "lora_magnitude_vector")] = 1.1 * norm
    save_file(tensors, path)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    return folder


def test_dora_is_continued_and_merged_into_a_whole_model(first, tmp_path) -> None:
    dora = str(_as_dora(first, tmp_path / "dora"))
    continued = start_from(tmp_path, first, model={"adapter": dora}, name="one", max_steps=1)
    train(continued)
    whole = start_from(
        tmp_path,
        first,
        model={"adapter": dora, "adapter_mode": "merge"},
        method={"name": "full"},
        name="two",
        max_steps=1,
    )
    train(whole)
    plain = start_from(tmp_path, first, name="three", max_steps=1)
    train(plain)
    one, two, three = (losses(tmp_path / name)[0] for name in ("one", "two", "three"))
    assert one == pytest.approx(two, abs=1e-4)
    assert abs(one - three) > 0.01
    merged = start_from(tmp_path, first, model={"adapter": dora, "adapter_mode": "merge"})
    with pytest.raises(UserError, match="it has DoRA: merge it first"):
        read_inputs(merged)


def test_what_cannot_be_a_start_is_named(bases, first, tmp_path) -> None:
    def refused(**model) -> str:
        with pytest.raises(UserError) as caught:
            read_inputs(with_adapter(start_from(tmp_path, first, model=model)))
        return str(caught.value)

    assert "was not trained on" in refused(name_or_path=str(bases / "other"))
    assert "no such folder" in refused(adapter=str(tmp_path / "gone"))
    assert "this is not an adapter but a base model" in refused(adapter=str(bases / "one"))
    elsewhere = shutil.copytree(first / "run" / "adapter", tmp_path / "elsewhere")
    (elsewhere / "intel_ft.json").unlink()
    config = json.loads((elsewhere / "adapter_config.json").read_text())
    for change, words in (
        ({"peft_type": "LOHA"}, "only LoRA is supported"),
        ({"bias": "all"}, "biases of the base"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ):
        (elsewhere / "adapter_config.json").write_text(json.dumps(config | change))
        assert words in refused(adapter=str(elsewhere))


def test_an_adapter_of_the_hub(first, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(first / "run" / "adapter", tmp_path / "snapshot")
    (folder / "intel_ft.json").unlink()
    asked = []

    def snapshot(name, **options) -> str:
        asked.append((name, "adapter_model.safetensors" in options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    config = with_adapter(start_from(tmp_path, first, model={"adapter": "org/lora"}))
    assert config.method.r == 4 and asked == [("org/lora", True)]
    # Without a fingerprint, two Hub ids have to be equal.
    stored = json.loads((folder / "adapter_config.json").read_text())
    stored["base_model_name_or_path"] = "org/other"
    (folder / "adapter_config.json").write_text(json.dumps(stored))
    model = config.model.model_copy(update={"name_or_path": "org/base"})
    monkeypatch.setattr("intel_ft.training.start.require_matching_base", lambda *_: None)
    tokenizer = SimpleNamespace(get_vocab=dict)
    with pytest.raises(UserError, match="trained on org/other, not on org/base"):
        check_adapter(model, tokenizer)
    check_adapter(model.model_copy(update={"name_or_path": "org/other"}), tokenizer)


@pytest.mark.parametrize(
    ("model", "method", "words"),
    [
        ({}, {"name": "full"}, "model.adapter_mode=continue trains an adapter"),
        ({}, {"init": "gaussian"}, "method.init=gaussian is for a new adapter"),
        ({"adapter_mode": "merge"}, {"use_dora": True}, "use_dora"),
        ({"adapter_mode": "merge"}, {"init": "pissa"}, "init=pissa"),
        ({"adapter_mode": "merge", "adapter": None}, {}, "needs model.adapter"),
        ({"add_tokens": ["<a>"]}, {}, "needs a new adapter"),
    ],
)
def test_settings_that_contradict_the_start(first, tmp_path, model, method, words) -> None:
    with pytest.raises(UserError, match=words):
        start_from(tmp_path, first, model=model, method=method)
