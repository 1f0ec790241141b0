"""Files of prompts that cannot be read."""

import pytest

from intel_ft.errors import UserError
from intel_ft.inference.prompts import read_prompts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "caf\xe9".encode("latin1"), "line 1 (byte 3 of the file) is not UTF-8: convert"),
        ("a.txt", "one\ntwo".encode("utf-16"), "is UTF-16: convert"),
        ("a.txt", "one\ntwo".encode("utf-16-le"), "is UTF-16LE: convert"),
        ("a.jsonl", b"<!DOCTYPE html>", "is an HTML page"),
        ("a.csv", b"prompt\nx\n", "must be in a .txt or .jsonl file"),
        ("a.txt", b"\n \n", "contains no prompt"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / name)
    assert words in str(caught.value)
    with pytest.raises(UserError, match="no such file of prompts"):
        read_prompts(tmp_path / "absent.txt")


def test_text_with_a_mark_of_utf_8_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    assert [messages[0].content for messages in read_prompts(tmp_path / "a.txt")] == ["one", "two"]
