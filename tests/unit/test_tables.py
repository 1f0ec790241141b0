"""Tables in a terminal and as Markdown hold every cell, whatever it contains."""

from intel_ft.tables import Table, escape_markdown

TABLE = Table(("case", "a|b"), [("x" * 120, "1"), ("two\nlines", "<b>2</b>")], ("A note.",))


def test_markdown_cells_cannot_leave_their_cell() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == r"| case | a\|b |"
    assert lines[1] == "| --- | ---: |"
    assert lines[3] == r"| two lines | \<b\>2\</b\> |"
    assert lines[-1] == "A note."
    assert len(lines) == 6


def test_every_active_character_is_escaped() -> None:
    text = "`code` *bold* [link](x) <img> a|b \\ end\r\n# heading"
    assert escape_markdown(text) == (r"\`code\` \*bold\* \[link\](x) \<img\> a\|b \\ end # heading")
    assert escape_markdown("intel_ft, 3.5 %: a-b") == "intel_ft, 3.5 %: a-b"


def test_a_file_gets_whole_lines_and_a_terminal_fitted_ones(capsys, monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    TABLE.draw()
    assert "x" * 120 in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    TABLE.draw()
    fitted = capsys.readouterr().out
    assert "x" * 120 not in fitted
    assert fitted.count("x") == 120
    assert max(map(len, fitted.splitlines())) <= 60
