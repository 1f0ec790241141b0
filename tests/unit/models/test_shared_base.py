"""A model whose frozen weights are mapped trains bit for bit as one that holds them itself."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.model_fixtures import row_of

from intel_ft.bench.workloads import random_model, workload
from intel_ft.config import build
from intel_ft.host.file_pages import FilePages
from intel_ft.layers import packed_attention
from intel_ft.layers.int8 import can_int8
from intel_ft.layers.mapped import Reader, Writer
from intel_ft.layers.prepacked import can_prepack
from intel_ft.models import shared_base
from intel_ft.models.adapter import add_lora
from intel_ft.models.fast_path import apply_fast_path
from intel_ft.models.loss import loss_sum
from intel_ft.models.shared_base import BaseFiles, base_facts, shared_bytes


def config(base_dtype="auto"):
    return build(
        {
            "model": {"name_or_path": "x", "base_dtype": base_dtype},
            "data": {"train": "x"},
            "method": {"r": 4, "dropout": 0.0},
            "output": {"directory": "x"},
        },
        "test",
    )


class InFile:
    """Shares a base through a file, and counts what is made and what is mapped."""

    copies_for = 2

    def __init__(self, descriptor) -> None:
        self.descriptor, self.made, self.used = descriptor, [], []

    def agree(self, yes, size):
        self.size = size
        return yes

    def decisions(self):
        return []

    @contextmanager
    def keep(self, facts, size):
        path = Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")
        keep = Reader.open(path, facts) or Writer(self.descriptor, facts)

        def counted(key, make):
            self.used.append(key)
            return keep(key, lambda: self.made.append(key) or make())

        yield counted
        if isinstance(keep, Writer):
            assert keep.failed is None
            keep.finish()


def gradients(name, settings, shared):
    base = random_model(workload(name), 0, packed_attention.NAME)
    model = add_lora(base, settings.method, "base", None).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1)
    apply_fast_path(model, settings, 0, 2, shared=shared)
    total = loss_sum(model, row_of(40, 30), packed=True)
    total.backward()
    trained = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    return torch.cat([total.detach().float().flatten(), *trained])


@pytest.mark.parametrize("base_dtype", ["auto", "int8", "nf4"])
@pytest.mark.parametrize("name", ["tiny", "tiny-mixture"])
def test_mapped_weights_give_the_same_bits(name, base_dtype, monkeypatch) -> None:
    if (base_dtype == "auto" and not can_prepack(torch.bfloat16)) or (
        base_dtype == "int8" and not can_int8()
    ):
        pytest.skip("this CPU has no such layout")
    if base_dtype == "nf4":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(shared_base, "_LEAST", 1)
    descriptor = os.memfd_create("test")
    os.fchmod(descriptor, 0o600)
    settings, first, second = config(base_dtype), InFile(descriptor), InFile(descriptor)
    prepared, mapped = (gradients(name, settings, shared) for shared in (first, second))
    assert first.made and second.made == []
    assert second.used == first.used
    assert any("embed_tokens" in key for key in first.used)
    assert any("q_proj" in key for key in first.used)
    assert any("down_proj" in key for key in first.used)
    assert torch.equal(prepared, mapped)
    # A choice that is measured may be another one without sharing: then there are no same bits.
    if base_dtype != "int8":
        assert torch.equal(prepared, gradients(name, settings, None))
    assert first.size == pytest.approx(os.fstat(descriptor).st_size, rel=1.0)
    os.close(descriptor)


def test_what_decides_the_weights_is_in_the_facts(tmp_path) -> None:
    model = add_lora(
        random_model(workload("tiny"), 0, packed_attention.NAME), config().method, "base", None
    )
    (tmp_path / "config.json").write_text('{"hidden_size": 1}')
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, file)
    source = BaseFiles(tmp_path)
    before = base_facts(model, "int8", source)
    assert base_facts(model, "int8", source) == before
    assert base_facts(model, "nf4", source) != before
    save_file({"a": torch.full((3,), 2.0)}, file)
    os.utime(file, ns=(before["files"][0][2],) * 2)  # same size, same time
    assert base_facts(model, "int8", source) != before
    assert base_facts(model.float(), "int8", None) != base_facts(model.bfloat16(), "int8", None)


def test_parameters_that_are_pages_of_a_file_already_are_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shared_base, "_LEAST", 1)
    model = random_model(workload("tiny"), 0, packed_attention.NAME)
    before = shared_bytes(model, "as loaded")
    embeddings = model.get_input_embeddings().weight
    file = tmp_path / "weights"
    file.write_bytes(embeddings.detach().view(torch.uint8).numpy().tobytes())
    pages = torch.from_file(str(file), size=embeddings.numel(), dtype=torch.bfloat16)
    embeddings.data = pages.view(embeddings.shape)
    assert embeddings.data_ptr() in FilePages.read()
    assert shared_bytes(model, "as loaded") == before - embeddings.nbytes
