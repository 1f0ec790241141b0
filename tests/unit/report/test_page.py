"""The report of complete, broken and hostile run folders.

It is always one page that states what is missing, and nothing in it is loaded or run.
"""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intel_ft.errors import UserError
from intel_ft.files import write_manifest
from intel_ft.report.charts import bar_chart, line_chart
from intel_ft.report.page import report
from intel_ft.report.read_run import read_run

HOSTILE = (
    "</style></pre><script src=http://x/a.js>alert(1)</script><img src=x onerror='f()'>\"&\x00"
)
_VOID = {"meta"}


class _Page(HTMLParser):
    """Checks that tags are nested, and collects them with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> None:
    """Well-formed, with nothing that runs and nothing from elsewhere."""
    page = _Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "image", "use", "a", "base"}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)


def line(step: int, **values: object) -> dict[str, object]:
    defaults = {
        "loss": 2.0 / step,
        "lr": 1e-4,
        "grad_norm": 1.0,
        "tokens": 1000,
        "supervised_tokens": 500,
        "tokens_per_s": 250.0 + step,
        "mfu": 0.5,
        "rank_imbalance": 0.1,
        "rss_gib": 1.5,
        "step_s": 4.0 + step / 10,
    }
    return {"step": step} | defaults | values


def make_run(folder: Path, steps: int = 12, text: str = "plain", **environment: object) -> Path:
    """A whole run's folder, with `text` wherever a user's text can come to stand."""
    folder.mkdir(parents=True)
    lines = [line(step) for step in range(1, steps + 1)]
    lines.append({"step": steps, "eval_loss": 0.5, "eval_perplexity": 1.6})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    config = {"model": {"name_or_path": text}, "train": {"seed": len(folder.name)}}
    (folder / "config.yaml").write_text(json.dumps(config))
    data = {
        "source": text,
        "examples": 90,
        "notes": [f"split train ({text})"],
        "bad": 17,
        "truncated": 3,
        "dropped": 7,
        "longest": 64,
        "lengths": {"edges": [1, 20, 64], "counts": [30, 60]},
    }
    decision = {"name": "MFU's peak", "value": f"440 GFLOP/s {text}", "reason": text}
    values = {"cpu": text, "ranks": 2, "threads": 1, "packages": {text: "1"}}
    values |= {"decisions": [decision], "data": {"train": data}} | environment
    (folder / "environment.json").write_text(json.dumps(values))
    sample = {"prompt": text, "before": "so", "after": text}
    (folder / "samples.jsonl").write_text(json.dumps(sample))
    example = {"tokens": 1234, "trained": 5, "parts": [[text, False], [f"answer {text}", True]]}
    (folder / "examples.jsonl").write_text(json.dumps(example))
    (folder / "adapter").mkdir()
    whole = folder / f"checkpoint-{steps}"
    whole.mkdir()
    (whole / "weights").write_bytes(b"x" * 2**20)
    write_manifest(whole)
    return folder


def test_what_shared_prefixes_saved_is_shown(tmp_path) -> None:
    folder = make_run(tmp_path / "run", steps=2)
    lines = [line(1, computed_tokens=700), line(2)]  # the second step's examples shared nothing
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert "<td>shared prefixes, share of tokens</td><td>15.0 %</td>" in report([folder])


def test_a_whole_run_is_shown_whole(tmp_path) -> None:
    page = report([make_run(tmp_path / "run")])
    check(page)
    assert "run, example 1: 1,234 tokens, 5 trained on" in page
    assert "<pre>plain<mark>answer plain</mark></pre>" in page
    titles = re.findall(r'class="title">([^<]*)<', page)
    assert titles == [
        "training loss, nats per token",
        "validation loss, nats per token",
        "token/s",
        "MFU, as a share of the measured GEMM peak",
        "memory of rank 0, GiB",
        "learning rate",
        "gradient norm",
        "rank imbalance: most expensive share over the mean",
        "step times",
        "example lengths, train",
    ]
    for fact in ("<td>12</td>", "440 GFLOP/s", "<td>1.6</td>", "<td>complete</td>", "<td>7</td>"):
        assert fact in page
    assert "<td>notes</td><td>split train (plain)</td>" in page
    assert "<td>bad</td><td>17</td>" in page
    assert "<td>shared prefixes, share of tokens</td><td>0.0 %</td>" in page
    # Medians leave the first two steps out: those of 3 to 12.
    assert "<td>token/s, median</td><td>257.5</td>" in page
    assert "<td>step s, p10-p90</td><td>4.39-5.11</td>" in page
    assert 'class="missing"' not in page
    assert "<h2>Samples</h2>" in page


def test_hostile_text_stays_text(tmp_path) -> None:
    page = report(
        [make_run(tmp_path / "a<b>&", text=HOSTILE), make_run(tmp_path / "c", text="\ud800")]
    )
    check(page)
    assert page.count("alert(1)") >= 6
    assert page.count("&lt;script") == page.count("alert(1)")
    assert page.encode("utf-8")
    assert "\x00" not in page
    assert "a&lt;b&gt;&amp;" in page


def test_several_runs_stand_side_by_side(tmp_path) -> None:
    page = report([make_run(tmp_path / "one"), make_run(tmp_path / "three", steps=20)])
    check(page)
    assert "<th></th><th>one</th><th>three</th>" in page
    assert "<tr><td>steps</td><td>12</td><td>20</td></tr>" in page
    assert "<tr><td>train.seed</td><td>3</td><td>5</td></tr>" in page
    assert "<td>model.name_or_path</td>" not in page  # the same in both
    chart = re.search(r"<svg[^>]*training loss.*?</svg>", page, re.DOTALL)[0]
    assert chart.count('class="line ') == 2


def test_a_killed_run_says_what_it_lacks(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss": 1.')
    (folder / "adapter").rmdir()
    (folder / "environment.json").write_text('{"cpu": ')
    (folder / "checkpoint-12" / "weights").write_bytes(b"y")
    page = report([folder])
    check(page)
    for fact in (
        "1 broken line skipped",
        "neither adapter/ nor model/",
        "environment.json is not a JSON object",
        "weights does not match its SHA-256",
        "not finished",
    ):
        assert fact in page


def test_a_run_that_trained_all_weights_is_finished(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "adapter").rename(folder / "model")
    assert "not finished" not in report([folder])


def test_each_missing_file_is_named_and_the_rest_shown(tmp_path) -> None:
    for name in ("metrics.jsonl", "environment.json", "config.yaml"):
        folder = make_run(tmp_path / name)
        (folder / name).unlink()
        page = report([folder])
        check(page)
        assert f"{name} cannot be read" in page
    older = make_run(tmp_path / "older", data=None)
    assert "no data statistics" in report([older])


def test_losses_that_are_no_numbers_are_gaps(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    lines = [line(1), line(2, loss=float("nan")), line(3), line(4, loss="x"), line(5), line(6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    page = report([folder])
    check(page)
    assert "2 losses not finite" in page
    assert "no evaluation" in page
    chart = re.search(r"<svg[^>]*training loss.*?</svg>", page, re.DOTALL)[0]
    path = re.search(r'class="line c0" d="([^"]*)"', chart)[1]
    assert (path.count("M"), path.count("L")) == (3, 1)  # 1, 3, 5-6
    assert chart.count("h0") == 2  # the lonely ones are dots


def test_only_what_is_no_run_at_all_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        report([tmp_path / "none"])
    with pytest.raises(UserError, match="not a run's folder"):
        report([tmp_path])
    (tmp_path / "checkpoint-5").mkdir()
    page = report([tmp_path])
    check(page)
    assert "manifest.json is missing" in page


def test_long_runs_are_drawn_with_few_points(tmp_path) -> None:
    folder = make_run(tmp_path / "run", steps=9000)
    page = report([folder])
    check(page)
    assert len(page) < 200_000
    assert "<td>9,000</td>" in page


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
_KEYS = st.sampled_from(["step", "loss", "eval_loss", "mfu", "step_s", "rss_gib", "rank_imbalance"])


@settings(max_examples=60)
@given(
    lines=st.lists(st.dictionaries(_KEYS, _JSON), max_size=5),
    environment=st.dictionaries(st.sampled_from(["decisions", "data", "ranks", "cpu"]), _JSON),
    config=_JSON,
)
def test_any_json_is_reported(tmp_path_factory, lines, environment, config) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "config.yaml").write_text(json.dumps(config))
    check(report([folder]))


def test_a_config_of_aliases_does_not_grow(tmp_path) -> None:
    """Ten lists of ten times the one before, as in "a billion laughs"."""
    folder = make_run(tmp_path / "run")
    lists = ["a0: &a0 [x]"]
    lists += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (folder / "config.yaml").write_text("s:\n  " + "\n  ".join(lists) + "\n")
    assert read_run(folder).config == {"s.a0": "x"}


def test_charts_of_nothing_are_not_drawn() -> None:
    assert line_chart("t", [(0, "a", [(1.0, None)])]) == ""
    assert bar_chart("t", 0, [], [], "x") == ""
    assert bar_chart("t", 0, [0, 1, 2], [0, 0], "x") == ""
    assert bar_chart("t", 0, [0, 1], [1, 2], "x") == ""


def test_a_chart_is_within_its_frame() -> None:
    far = [(1e29, 1.0)], [(1.0, 1.0), (1e29, 2.0)], [(1.0, -1e9), (2.0, 1e29)]
    for points in ([(5.0, 3.0)], [(1.0, 0.0), (2.0, 0.0)], *far):
        chart = line_chart("t", [(0, "a", points)], reference=(1.0, "level"))
        ET.fromstring(chart)
        path = re.search(r'class="line c0" d="([^"]*)"', chart)[1]
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path):
            assert 64 <= float(x) <= 548
            assert 30 <= float(y) <= 196
