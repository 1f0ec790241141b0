"""Training on the int4 weights that are served: the same bits in torch, in the IR and in GenAI."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.small_runs import config_in, fill, make_bases

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from intel_ft.artifacts.int4_base import cache_folder, find_int4_base, open_int4_base, read_record
from intel_ft.artifacts.ir_weights import (
    dequantize,
    digest_of,
    read_compressed,
    replace_weights,
    unpack,
)
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import IR_FILE, resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export import trained_base
from intel_ft.export.adapters import export_adapters
from intel_ft.export.base import make_base
from intel_ft.export.context import ModelToExport
from intel_ft.export.merge import merge
from intel_ft.export.trained_base import _copy
from intel_ft.kernels.build import kernels
from intel_ft.models.load import load_base
from intel_ft.models.start_adapter import read_config
from intel_ft.quantization import Settings
from intel_ft.runtimes.openvino_lm import OpenVINOLM
from intel_ft.runtimes.torch_lm import load_torch
from intel_ft.training import int4_base
from intel_ft.training.checkpoint import checkpoints
from intel_ft.training.run import train

F32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # otherwise activations have 8 bits
}
INT4 = {
    "base_dtype": "int4",
    "quantization": {"ratio": 0.8, "sensitivity_metric": "weight_quantization_error"},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for this module, filled in this process: a separate one takes seconds."""
    kernels()  # compiled or loaded from the user's own cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(int4_base, "_make", make_base)
        yield


def int4_config(folder: Path, **settings):
    config = config_in(folder, **settings)
    return config.model_copy(update={"model": config.model.model_copy(update=INT4)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run on int4 weights, some layers of which have 8 bits."""
    root = tmp_path_factory.mktemp("int4")
    folder = root / "trained"
    folder.mkdir()
    fill(folder, make_bases(root / "bases"))
    train(int4_config(folder))
    return folder


def compressed(run: Path):
    digest = Provenance.load(run / "adapter").base_int4
    return open_int4_base(find_int4_base(digest))


def test_weights_are_those_that_openvino_computes(trained) -> None:
    import openvino

    base = compressed(trained / "run")
    model = openvino.Core().read_model(base.folder / IR_FILE)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    bits = {name: tensor.bits for name, tensor in base.weights.items()}
    assert set(bits.values()) == {4, 8} and bits["model.embed_tokens"] == 8
    for name, tensor in base.weights.items():
        (product,) = [
            node
            for key, node in nodes.items()
            if key.startswith(f"self.{name}.") and "/fq_weights" in key
        ]
        # Grouped weights are reshaped afterwards; this Multiply rounds to f16.
        part = openvino.Model([product.output(0)], [], "weight")
        compiled = openvino.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled([])[0].astype(np.float32).reshape(tensor.shape)
        exact = dequantize(tensor)
        np.testing.assert_allclose(found, exact, rtol=2**-10, atol=1e-7, err_msg=name)


def test_a_step_computes_with_these_weights(trained) -> None:
    base = compressed(trained / "run")
    model = load_torch(resolve(str(trained / "run")), dtype="float32").model
    plain = load_base(int4_config(trained).model, torch.float32)
    layers = dict(model.named_modules())
    for name, tensor in base.weights.items():
        exact = torch.from_numpy(dequantize(tensor))
        layer = layers[f"base_model.model.{name}"]
        if name in ("model.embed_tokens", "lm_head"):
            assert layer.weight.equal(exact), name
            continue
        frozen = layer.base_layer.frozen_base
        assert frozen.weight().equal(exact), name
        loaded = plain.get_submodule(name).weight
        assert not loaded.equal(exact)  # so a layer left as loaded would show
        assert (loaded - exact).norm() < 0.2 * loaded.norm(), name
        x, grad = torch.randn(3, tensor.shape[1]), torch.randn(3, tensor.shape[0])
        torch.testing.assert_close(frozen.linear(x, None), x @ exact.T)
        torch.testing.assert_close(frozen.input_gradient(grad, None), grad @ exact)


def test_four_bits_take_at_most_a_third_of_bf16(trained) -> None:
    for tensor in compressed(trained / "run").weights.values():
        if tensor.bits == 4 and tensor.group >= 32:
            assert tensor.nbytes <= 0.32 * 2 * tensor.shape[0] * tensor.shape[1]


def test_a_run_that_stopped_ends_as_one_that_did_not(trained, tmp_path) -> None:
    shutil.copytree(trained, tmp_path / "again", ignore=shutil.ignore_patterns("run"))
    config = int4_config(tmp_path / "again")
    half = config.model_copy(
        update={"train": config.train.model_copy(update={"max_steps": 4, "keep_checkpoints": 9})}
    )
    train(half)
    (last,) = [path for path in checkpoints(config.output.directory) if path.name.endswith("-4")]
    shutil.rmtree(last)
    result = config.output.directory / "adapter"
    result.rename(tmp_path / "first")
    train(half, resume=True)
    first, again = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "first", result)
    )
    assert all(first[name].equal(again[name]) for name in first)
    other = config.model_copy(
        update={"model": config.model.model_copy(update={"quantization": {"sym": True}})}
    )
    shutil.rmtree(result)
    with pytest.raises(UserError, match="the int4 weights differs"):
        train(other, resume=True)


def test_the_served_weights_are_those_trained_on(trained, tmp_path) -> None:
    report = export_adapters([str(trained / "run")], tmp_path / "ir", "int4")
    base = compressed(trained / "run")
    assert report.trained_weights.sha256 == base.digest
    assert report.trained_weights.layers == len(base.weights)
    assert digest_of(read_compressed(tmp_path / "ir")) == base.digest
    record = json.loads((tmp_path / "ir" / "export.json").read_text())
    assert record["trained_weights"]["sha256"] == base.digest
    assert record["settings"]["ratio"] == 0.8
    assert not (tmp_path / "ir" / "base.json").exists()
    # The gate's reference is the model that was trained; only the plugin's arithmetic differs.
    (adapter,) = report.adapters
    assert abs(adapter.quality.ppl_increase) < 0.01
    assert adapter.quality.kl < 1e-3
    # In float32 the logits are equal to rounding.
    torch_lm = load_torch(resolve(str(trained / "run")), dtype="float32")
    from intel_ft.export.adapter_runtime import AdaptedIR

    served = AdaptedIR(tmp_path / "ir", torch_lm.tokenizer, tmp_path / "ir" / adapter.file)
    served._properties = F32
    tokens = np.array(torch_lm.tokenizer("word 3 return class")["input_ids"], dtype=np.int32)
    at = np.arange(len(tokens))
    expected, found = torch_lm.logits(tokens, at), served.logits(tokens, at)
    without = OpenVINOLM(tmp_path / "ir", torch_lm.tokenizer, F32).logits(tokens, at)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 5e-3 * scale
    assert np.abs(without - expected).max() > 5e-2 * scale  # so the adapter is applied


def test_what_the_export_refuses(trained, tmp_path) -> None:
    run = str(trained / "run")
    for weight_format, settings in (("int8", Settings()), ("int4", Settings(group_size=64))):
        with pytest.raises(UserError, match="exported unchanged"):
            export_adapters([run], tmp_path / "ir", weight_format, settings=settings)
    with pytest.raises(UserError, match="AWQ moves scales"):
        export_adapters([run], tmp_path / "ir", "int4", settings=Settings(awq=True))
    shutil.copytree(trained / "run" / "adapter", tmp_path / "plain")
    record = json.loads((tmp_path / "plain" / "intel_ft.json").read_text())
    (tmp_path / "plain" / "intel_ft.json").write_text(json.dumps(record | {"base_int4": None}))
    with pytest.raises(UserError, match="trained on different weights"):
        export_adapters([run, str(tmp_path / "plain")], tmp_path / "ir", "int4")
    assert not (tmp_path / "ir").exists()


def test_a_base_in_8_bits(trained, tmp_path) -> None:
    config = int4_config(trained)
    model = config.model.model_copy(update={"quantization": {"format": "int8"}})
    folder = cache_folder() / "int8"
    digest = make_base(config.model_copy(update={"model": model}), folder)
    base = open_int4_base(folder)
    assert {tensor.bits for tensor in base.weights.values()} == {8}
    shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "intel_ft.json").read_text())
    (tmp_path / "adapter" / "intel_ft.json").write_text(json.dumps(record | {"base_int4": digest}))
    artifacts = [resolve(str(tmp_path / "adapter"))]
    assert trained_base.common_int4(artifacts, "int8", Settings(), None) == digest
    with pytest.raises(UserError, match=r"trained on int8 weights.*use --format int8 without"):
        trained_base.common_int4(artifacts, "int4", Settings(), None)


def test_a_lost_base_is_made_again_and_a_damaged_one_refused(
    trained, tmp_path, monkeypatch
) -> None:
    base = compressed(trained / "run")
    aside = tmp_path / "aside"
    base.folder.rename(aside)
    source = ModelToExport(resolve(str(trained / "run")), None, False, False, merged=False)
    (tmp_path / "ir").mkdir()
    _copy(source, base.digest, tmp_path / "ir")
    assert digest_of(read_compressed(tmp_path / "ir")) == base.digest
    monkeypatch.setattr(trained_base, "make_base", lambda *_: base.digest)  # as just now
    with pytest.raises(UserError, match="gives weights that differ from those it was trained on"):
        _copy(source, "0" * 64, tmp_path / "ir")
    shutil.copytree(aside, base.folder)
    name, tensor = next((n, t) for n, t in base.weights.items() if t.bits == 4)
    codes = unpack(tensor.codes, tensor.shape[0] * tensor.shape[1]).copy()
    codes[0] ^= 1
    replace_weights(base.folder, {name: (codes, tensor.scales.astype(np.float32), tensor.zeros)})
    with pytest.raises(IntelFTError, match="are damaged"):
        train(int4_config(trained), overwrite=True)
    assert (trained / "run" / "adapter").is_dir()
    shutil.rmtree(base.folder)
    aside.rename(base.folder)
    assert read_record(base.folder)["sha256"] == base.digest


def test_the_adapter_merges_into_the_unquantized_base(trained, tmp_path) -> None:
    # Without AWQ the int4 weights are roundings of the base's, layer by layer.
    report = merge(str(trained / "run"), tmp_path / "merged")
    assert report.agreement.relative_error < report.adapter_effect


def test_an_adapter_that_makes_up_for_rounding_fits_no_other_base(trained, tmp_path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "run" / "adapter", adapter)
    record = json.loads((adapter / "intel_ft.json").read_text())
    changed = record | {"needs_int4": True, "base_int4": "0" * 64}
    (adapter / "intel_ft.json").write_text(json.dumps(changed))
    for use in (
        lambda: merge(str(adapter), tmp_path / "merged"),
        lambda: read_config(adapter),
        lambda: load_torch(resolve(str(adapter))),
    ):
        with pytest.raises(UserError, match="works with no other weights"):
            use()
