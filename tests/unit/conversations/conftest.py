"""Reading rows as conversations."""

import json

import pytest

from intel_ft.config_sections import DataConfig
from intel_ft.conversations.from_rows import read_conversations
from intel_ft.sources.rows import load_rows


@pytest.fixture
def read(tmp_path):
    """The conversations of a file with these rows, read with these settings of `data`."""

    def read(*rows, **data):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_conversations(load_rows(str(file)), DataConfig(train=str(file), **data))

    return read
