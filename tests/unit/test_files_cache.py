"""Where cached files go."""

from pathlib import Path

import pytest

from intel_ft.artifacts import int4_base
from intel_ft.errors import EnvironmentProblem
from intel_ft.files import user_cache
from intel_ft.models import base_cache
from intel_ft.sources import cache_folder


@pytest.mark.parametrize(
    "folder", [base_cache.cache_folder, int4_base.cache_folder, cache_folder.user_folder]
)
def test_all_caches_are_in_one_folder(folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder().parent == tmp_path / "intel_ft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder().parent == tmp_path / ".cache/intel_ft"


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(EnvironmentProblem, match="XDG_CACHE_HOME"):
        user_cache("data")
