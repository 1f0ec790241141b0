"""The files that the parts of sharded weights are written to (training.sharding)."""

import torch

from intel_ft.distributed.world import World
from intel_ft.training import sharding


def test_parts_are_written_to_files_of_a_limited_size(tmp_path, monkeypatch):
    """A rank that writes one file would have copies of all of its parts in memory."""
    monkeypatch.setattr(sharding, "FILE_BYTES", 400)
    shards = sharding.Shards(torch.nn.Identity(), World())
    tensors = {
        name: torch.randn(size) for name, size in zip("abcde", (60, 40, 150, 1, 2), strict=True)
    }
    shards.write(tmp_path, tensors)
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert len(sizes) == 3, "a and b; c, which alone is larger; d and e"
    assert sizes[1] > 600 > max(sizes[0] - 400, sizes[2])
    read = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    shards.read(tmp_path, read)
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)
