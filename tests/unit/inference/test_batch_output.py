"""Batches, seeds and stop texts, over torch and over OpenVINO; files of prompts."""

from importlib.util import find_spec

import pytest
import torch
from support.export_fixtures import PAGE, make_adapter
from transformers import RepetitionPenaltyLogitsProcessor

from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import UserError
from intel_ft.inference.prompts import read_prompts
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.open_model import open_model
from intel_ft.templates.formats import Message

needs_openvino = pytest.mark.skipif(
    find_spec("openvino_genai") is None or find_spec("optimum.intel") is None,
    reason="needs the openvino extra",
)
TEXTS = [PAGE[: PAGE.index(" sum(value")], "def max", PAGE[:300]]


@pytest.fixture(scope="module", params=["torch", pytest.param("openvino", marks=needs_openvino)])
def model(request, page_base, tmp_path_factory):
    if request.param == "torch":
        return open_model(resolve(str(page_base)), dtype="float32")
    from intel_ft.export.export import export

    root = tmp_path_factory.mktemp("many")
    make_adapter(page_base, root / "run" / "adapter", size=0.0)
    export(str(root / "run"), root / "ir", "fp16")
    return open_model(resolve(str(root / "ir")))


@pytest.fixture(scope="module")
def prompts(model):
    return [model.tokenizer(text)["input_ids"] for text in TEXTS]


def test_a_batch_gives_what_each_prompt_gives_alone(model, prompts) -> None:
    greedy = Sampling(max_new_tokens=16)
    together = [one.text for one in model.generate_many(prompts, [0, 0, 0], greedy)]
    assert together == [model.generate(one, greedy).text for one in prompts]
    assert "(value." in together[0]


def test_a_seed_gives_its_answer_whatever_else_is_in_the_batch(model, prompts) -> None:
    hot = Sampling(max_new_tokens=12, temperature=2.0, top_k=40, top_p=0.95)
    three = model.generate_many([prompts[0]] * 3, [1, 2, 3], hot)
    assert len({one.text for one in three}) == 3
    other = model.generate_many([prompts[1], prompts[0]], [7, 2], hot)
    assert other[1].text == three[1].text


def test_stop_texts_end_an_answer_and_are_not_in_it(model, prompts) -> None:
    whole = model.generate(prompts[0], Sampling(max_new_tokens=24)).text
    stop = whole[9:13]
    place = whole.index(stop)
    sampling = Sampling(max_new_tokens=24, stop=("never this", stop))
    streamed: list[str] = []
    alone = model.generate(prompts[0], sampling, streamed.append)
    assert alone.text == whole[:place] == "".join(streamed)
    assert alone.stopped and len(alone.new_tokens) < 24
    batch = model.generate_many(prompts[:2], [0, 0], sampling)
    assert batch[0].text == whole[:place] and batch[0].stopped
    assert len(batch[0].new_tokens) == len(alone.new_tokens)  # without the padding of the row
    # The beginning of a stop text is held back, but not lost if the rest does not come.
    streamed.clear()
    last = whole[-2:] + "never"
    model.generate(prompts[0], Sampling(max_new_tokens=24, stop=(last,)), streamed.append)
    assert "".join(streamed) == whole


def test_the_repetition_penalty_ignores_padding() -> None:
    from intel_ft.runtimes.torch_sampling import RepetitionPenalty

    rows, scores = torch.tensor([[5, 6, 7, 8], [0, 0, 7, 7]]), torch.randn(2, 61)
    reference = RepetitionPenaltyLogitsProcessor(1.5)
    penalized = RepetitionPenalty(1.5, [0, 2])(rows, scores)
    assert torch.equal(penalized[:1], reference(rows[:1], scores[:1]))
    assert torch.equal(penalized[1:], reference(rows[1:, 2:], scores[1:]))


def test_a_batch_at_the_edge_of_the_window(model, prompts) -> None:
    """A prompt that leaves 6 tokens of 256 does not shorten its neighbour's answer."""
    long = (prompts[2] * 20)[:250]
    answers = model.generate_many([long, prompts[0]], [0, 0], Sampling(max_new_tokens=20))
    assert len(answers[0].new_tokens) <= 6 and len(answers[1].new_tokens) == 20
    with pytest.raises(UserError, match="context window is 256"):
        model.generate_many([prompts[0], long + long], [0, 0], Sampling(max_new_tokens=20))


def test_sampling_draws_from_the_distribution() -> None:
    """10,000 rows of three tokens: shares within four standard deviations."""
    import torch

    from intel_ft.runtimes.torch_sampling import SeededRows

    shares = torch.tensor([0.5, 0.3, 0.2])
    rows = 10_000
    draw = SeededRows(Sampling(temperature=2.0), list(range(rows)))
    tokens = draw(None, (2 * shares.log()).repeat(rows, 1)).argmax(dim=1)
    drawn = torch.bincount(tokens, minlength=3) / rows
    assert ((drawn - shares).abs() < 4 * (shares * (1 - shares) / rows).sqrt()).all()
    cut = SeededRows(Sampling(temperature=1.0, top_k=2), [0] * 50)
    assert set(cut(None, shares.log().repeat(50, 1)).argmax(dim=1).tolist()) <= {0, 1}


def test_files_of_prompts(tmp_path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\r\n\n two\u2028still two \nthree", newline="")
    assert [one[0].content for one in read_prompts(path)] == [
        "one",
        " two\u2028still two ",
        "three",
    ]
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "x"}\n'
        '{"instruction": "b", "input": "", "output": "x"}\n'
        '{"instruction": "c", "context": "d", "response": "x"}\n'
        '{"question": "e"}\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "f"}]}\n'
    )
    prompts = read_prompts(path)
    assert [one[-1].full_content for one in prompts] == ["a", "b", "c\n\nd", "e", "f"]
    assert prompts[4][0] == Message("system", "s")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"prompt": ', "invalid JSON"),
        ("[1]", "must be a JSON object"),
        ('{"text": "x"}', "prompt, instruction, question"),
        ('{"prompt": 3}', "prompt must be text"),
        ('{"prompt": "  "}', "empty"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ('{"messages": []}', "messages must be"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "messages must be"),
        ('{"messages": [{"role": "user", "content": null}]}', "content must be text"),
        ('{"messages": "x"}', "must be a list"),
        ("[" * 100_000, "invalid JSON"),
    ],
)
def test_a_bad_line_is_named(line, part, tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n\n{line}\n')
    with pytest.raises(UserError, match=part) as caught:
        read_prompts(path)
    assert "p.jsonl line 3" in str(caught.value)


def test_a_file_that_is_none(tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "p.csv").write_text("a")
    for name, part in (("empty.txt", "no prompt"), ("latin.txt", "UTF-8"), ("p.csv", ".jsonl")):
        with pytest.raises(UserError, match=part):
            read_prompts(tmp_path / name)
