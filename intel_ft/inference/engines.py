"""Engines that answer requests: a local model in batches, or a server with parallel requests."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from intel_ft.inference.batch_output import Answer, Engine, Request
from intel_ft.runtimes.language_model import Completion, LanguageModel, Sampling
from intel_ft.templates.prompt import prompt_encoder
from intel_ft.templates.template import Template


def local_engine(
    model: LanguageModel,
    template: Template,
    system_prompt: str | None,
    sampling: Sampling,
    batch_size: int,
) -> Engine:
    """An engine that answers in batches of `batch_size` with a model in this process."""

    def answer(requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        encode = prompt_encoder(model.tokenizer, template, system_prompt)
        prompts = [encode(one.messages) for one in requests]
        seeds = [one.seed for one in requests]
        for index, done in complete_in_batches(model, prompts, seeds, sampling, batch_size):
            yield requests[index], Answer(done.text, len(done.new_tokens), done.stopped)

    return answer


def complete_in_batches(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    batch_size: int,
) -> Iterator[tuple[int, Completion]]:
    """Yield the index and the completion of each prompt, given as token ids with one seed each.

    The longest prompts come first, so that a prompt that does not fit fails early.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        completions = model.generate_many(
            [prompts[index] for index in batch], [seeds[index] for index in batch], sampling
        )
        yield from zip(batch, completions, strict=True)


def server_engine(ask: Callable[[Request], Answer], max_parallel: int) -> Engine:
    """An engine that sends at most `max_parallel` requests at a time to a server.

    After a failure no request is started; the answers to those in flight are still yielded.
    """

    def answer(requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        todo: queue.SimpleQueue[Request] = queue.SimpleQueue()
        for one in requests:
            todo.put(one)
        results: queue.SimpleQueue[tuple[Request, Answer] | Exception | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    one = todo.get_nowait()
                    results.put((one, ask(one)))
            except queue.Empty:
                pass
            except Exception as error:
                stop.set()
                results.put(error)
            finally:
                results.put(None)

        workers = min(max_parallel, len(requests))
        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()  # daemon: Ctrl-C waits for none
        failure: Exception | None = None
        try:
            while workers:
                result = results.get()
                if result is None:
                    workers -= 1
                elif isinstance(result, Exception):
                    failure = failure or result
                else:
                    yield result
        finally:
            stop.set()
        if failure:
            raise failure

    return answer
