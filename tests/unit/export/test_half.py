"""The fp16 copy that large models are traced from: the same tensors, in files of bound size."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from intel_ft.export import half
from intel_ft.export.half import half_precision
from intel_ft.models.weight_files import weight_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(half, "LARGE", 1000)
    monkeypatch.setattr(half, "SHARD", 2000)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for index in range(2):
        tensors = {f"{index}.{n}": torch.randn(16, 20).bfloat16() for n in range(3)}
        tensors[f"{index}.places"] = torch.arange(5)
        save_file(tensors, folder / f"part-{index}.safetensors")
    weight_map = {f"{i}.{n}": f"part-{i}.safetensors" for i in (0, 1) for n in (0, 1, 2, "places")}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_the_copy_has_the_same_tensors_in_fp16(folder, tmp_path) -> None:
    original = {k: v for path in weight_files(folder) for k, v in load_file(path).items()}
    with half_precision(folder, tmp_path / "out") as copy:
        assert copy != folder and (copy / "config.json").read_text() == "{}"
        files = weight_files(copy)
        assert len(files) == 2
        assert all(path.stat().st_size < 2000 + 16 * 20 * 2 + 1000 for path in files)
        found = {k: v for path in files for k, v in load_file(path).items()}
        assert found.keys() == original.keys()
        for name, tensor in original.items():
            exact = tensor.half() if tensor.is_floating_point() else tensor
            assert found[name].dtype == exact.dtype and found[name].equal(exact), name
        with half_precision(copy, tmp_path / "out") as again:
            assert again != copy  # because of the integers; of floats alone it is the same folder
    assert not copy.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_small_and_fp16_models_are_taken_as_they_are(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(half, "LARGE", 10**6)
    with half_precision(folder, tmp_path / "out") as same:
        assert same == folder
    monkeypatch.setattr(half, "LARGE", 1)
    single = tmp_path / "half"
    single.mkdir()
    save_file({"weight": torch.randn(4, 4).half()}, single / "model.safetensors")
    with half_precision(single, tmp_path / "out") as same:
        assert same == single
