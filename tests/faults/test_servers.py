"""`generate` and `chat` against servers that are down, slow, broken or busy.

Each failure is one line with the right exit code, keeps the answers so far, and can be resumed.
"""

import json
import socket
import time

import pytest
from support.harness import Result, run
from support.loopback import completion, last_question, send, serving


def ask(url, folder, *more, **options) -> Result:
    return run("generate", "--server", url, "--model", "m", *more, cwd=folder, **options)


def one_line(result: Result, code: int, *parts: str) -> None:
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert result.last_line.startswith("error: "), result.err
    assert sum(line.startswith("error: ") for line in result.err.splitlines()) == 1
    for part in parts:
        assert part in result.last_line, result.last_line


def test_a_dead_server(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        one_line(ask(url, tmp_path, "hi"), 3, url, "cannot be reached", "running there")


@pytest.mark.parametrize("drip", [False, True])
def test_a_slow_server(drip, tmp_path) -> None:
    """Silent, or sending a byte now and then, which never runs into a read timeout."""

    def behave(handler, body):
        if drip:
            handler.send_response(200)
            handler.end_headers()
        for _ in range(600):
            if drip:
                handler.wfile.write(b" ")
            time.sleep(0.1)

    with serving(behave) as (url, _):
        start = time.monotonic()
        result = ask(url, tmp_path, "hi", "--timeout", "0.5")
    one_line(result, 3, url, "within 0.5 s", "--timeout")
    assert time.monotonic() - start < 40


MALFORMED = {
    "html": b"<html><body>It works!</body></html>",
    "cut off": b'{"choices": [{"mess',
    "no object": [1, 2],
    "no choices": {"choices": []},
    "another shape": {"choices": [{"text": 3}]},
    "a number for text": completion(3),
    "not UTF-8": b"\xff\xfe\x00",
    "nothing": b"",
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer(name, tmp_path) -> None:
    with serving(lambda handler, body: send(handler, MALFORMED[name])) as (url, _):
        one_line(ask(url, tmp_path, "hi"), 1, url, "not the answer of an OpenAI-compatible server")


def test_a_body_shorter_than_it_says(tmp_path) -> None:
    def behave(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")

    with serving(behave) as (url, _):
        one_line(ask(url, tmp_path, "hi"), 3, url)


@pytest.mark.parametrize(
    ("status", "content", "code", "part"),
    [
        (400, {"error": {"message": "top_k must be\npositive"}}, 2, "top_k must be positive"),
        (422, {"detail": "Unexpected fields"}, 2, "Unexpected fields"),
        (404, {"error": {"message": "The model m does not exist"}}, 2, "does not exist"),
        (401, {"error": "who are you"}, 2, "OPENAI_API_KEY"),
        (302, b"", 2, "302"),
        (500, b"<h1>\x1b[31mOops</h1>", 1, "Oops"),
        (200, {"error": {"message": "out of memory"}}, 1, "out of memory"),
    ],
)
def test_a_server_that_rejects_the_request(status, content, code, part, tmp_path) -> None:
    with serving(lambda handler, body: send(handler, content, status)) as (url, _):
        result = ask(url, tmp_path, "hi")
    one_line(result, code, url, part)
    assert "\x1b" not in result.err


def test_a_busy_server_is_asked_again(tmp_path) -> None:
    answers = [(503, {"error": "busy"}), (200, completion("well"))]
    with serving(lambda handler, body: send(handler, *answers.pop(0)[::-1])) as (url, seen):
        result = ask(url, tmp_path, "hi", env={"OPENAI_API_KEY": "secret"})
    assert (result.code, result.out) == (0, "well\n")
    assert len(seen) == 2 and seen[0]["authorization"] == "Bearer secret"
    assert "secret" not in result.err


def test_answers_so_far_are_kept_and_resumed(tmp_path) -> None:
    """It dies at the fifth question; a second run asks only what is missing."""
    (tmp_path / "p.txt").write_text("".join(f"question {n}\n" for n in range(12)))
    before, broken = {f"question {n}" for n in range(5)}, {"question 5"}

    def behave(handler, body):
        question = last_question(body)
        if question in broken:
            send(handler, b"Segmentation fault", 500)
            return
        if broken and question not in before:  # until the failure has been handled
            time.sleep(1.5)
        send(handler, completion(f"answer to {question}"))

    arguments = ("--input", "p.txt", "-o", "out.jsonl", "--batch-size", "2")
    with serving(behave) as (url, seen):
        one_line(ask(url, tmp_path, *arguments), 1, "Segmentation fault")
        assert not (tmp_path / "out.jsonl").exists()
        kept = (tmp_path / "out.jsonl.partial").read_text().splitlines()[1:]
        assert 5 <= len(kept) <= 7
        one_line(ask(url, tmp_path, *arguments), 2, "out.jsonl.partial", "--resume")
        other = ask(url, tmp_path, *arguments, "--resume", "--max-new-tokens", "9")
        one_line(other, 2, "different max_new_tokens")
        # A kill in the middle of a line leaves half of one.
        with (tmp_path / "out.jsonl.partial").open("a") as file:
            file.write('{"index": 11, "sam')
        broken.clear()
        seen.clear()
        result = ask(url, tmp_path, *arguments, "--resume", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["asked_now"] == len(seen) == 12 - len(kept)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(12))
    assert all(line["text"] == f"answer to {line['prompt']}" for line in lines)
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_the_request_that_is_sent(tmp_path) -> None:
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"instruction": "Say </s> \u202e\x00", "input": "x", "output": "not sent"})
        + "\n"
    )
    send_surrogate = json.dumps(completion("a \ud800 b STOP c")).encode()
    with serving(lambda handler, body: send(handler, send_surrogate)) as (url, seen):
        result = ask(
            f"{url}/v3", tmp_path, "--input", "p.jsonl", "-n", "2", "--temperature", "0.5",
            "--top-k", "7", "--top-p", "0.9", "--repetition-penalty", "1.1", "--stop", "STOP",
            "--seed", "5", "--system", "Be brief.", "-o", "out.jsonl", "--max-new-tokens", "9",
        )  # fmt: skip
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a \ud800 b "] * 2
    assert [line["new_tokens"] for line in lines] == [3, 3]
    assert [line["sample"] for line in lines] == [0, 1]
    body = min(seen, key=lambda one: one["seed"])
    assert body["path"] == "/v3/chat/completions"
    assert sorted(one["seed"] for one in seen) == [5, 6]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say </s> \u202e\x00\n\nx"},
    ]
    wanted = {"model": "m", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7}
    wanted |= {"repetition_penalty": 1.1, "stop": ["STOP"]}
    assert {key: body[key] for key in wanted} == wanted


def test_a_template_of_training_asks_for_a_completion(tmp_path) -> None:
    with serving(lambda handler, body: send(handler, {"choices": [{"text": "5"}]})) as (url, seen):
        result = ask(url, tmp_path, "2 + 3?", "--template", "alpaca")
        assert (result.code, result.out) == (0, "5\n")
        assert seen[0]["path"] == "/v1/completions"
        assert seen[0]["prompt"].endswith("### Instruction:\n2 + 3?\n\n### Response:\n")
        assert seen[0]["prompt"].startswith("Below is an instruction")
        ask(url, tmp_path, "2 + 3?", "--template", "llama2", "--system", "S")
        assert seen[1]["prompt"] == "[INST] <<SYS>>\nS\n<</SYS>>\n\n2 + 3? [/INST] "
        many = {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]}
        (tmp_path / "p.jsonl").write_text(json.dumps(many))
        one_line(ask(url, tmp_path, "--input", "p.jsonl", "--template", "alpaca"), 2, "several")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["hi", "--server", "localhost:8000", "--model", "m"], "http://host:port"),
        (["hi", "--server", "ftp://x", "--model", "m"], "http://host:port"),
        (["hi", "--server", "http://x"], "--model"),
        (["folder", "hi", "--server", "http://x", "--model", "m"], "no MODEL"),
        (["hi"], "--input"),
        (["folder", "hi", "--input", "p.txt"], "--input"),
        (["folder", "hi", "-n", "2"], "temperature 0"),
        (["folder", "--input", "absent.txt"], "no such file of prompts"),
        (["folder", "hi", "--resume"], "--output"),
        (["tiny-python-llama", "hi", "--model", "m"], "--server"),
        (["tiny-python-llama", "hi", "--stop", ""], "stop text"),
    ],
)
def test_invalid_arguments(arguments, part, tmp_path) -> None:
    one_line(run("generate", *arguments, cwd=tmp_path), 2, part)


def test_chat_continues_after_a_servers_failure(tmp_path) -> None:
    """Streamed answers, history, a failure between, commands, and a saved conversation."""
    from intel_ft.inference.chat import chat
    from intel_ft.inference.server import Server
    from intel_ft.runtimes.language_model import Sampling

    def behave(handler, body):
        if last_question(body) == "break":
            send(handler, b"down", 500)
            return
        events = [{"choices": [{"delta": {"role": "assistant"}}]}]
        events += [{"choices": [{"delta": {"content": part}}]} for part in ("one ", "two")]
        events.append({"choices": []})
        said = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        send(handler, f": hello\n\n{said}data: [DONE]\n\ndata: no\n\n".encode())

    lines = ["first", "break", "/system Be kind.", "second", "//third", "/save talk.jsonl"]
    lines += ["/undo", "/nonsense", "/save /no/such/folder/x", "/help", "/clear", "/save x"]
    waiting = iter([*lines, "/exit", "never"])
    shown: list[str] = []
    with serving(behave) as (url, seen):
        server = Server(url, "m", 5)
        chat(
            lambda talk, write: server.stream(tuple(talk.history), talk.system, Sampling(), write),
            None,
            read=lambda prompt: next(waiting).replace("talk.jsonl", str(tmp_path / "talk.jsonl")),
            write=shown.append,
        )
    text = "".join(shown)
    assert text.startswith("one two\n(http://") and "failed (500): down" in text
    assert [len(body["messages"]) for body in seen] == [1, 3, 2, 4]
    assert seen[3]["messages"][-1]["content"] == "/third"
    saved = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [turn["role"] for turn in saved] == ["system", *["user", "assistant"] * 2]
    assert "(1 exchange left)" in text and "no command /nonsense" in text
    assert "cannot be written" in text and "/save FILE" in text and "nothing to save" in text
    assert next(waiting) == "never"
