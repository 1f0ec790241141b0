"""Run an OpenVINO IR on this CPU with OpenVINO GenAI.

Optimum, NNCF and the Python part of openvino-tokenizers are needed only for export.
"""

import queue
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.model_folder import stop_tokens
from intel_ft.artifacts.resolve import IR_FILE, Artifact
from intel_ft.errors import UserError
from intel_ft.optional_packages import require_openvino
from intel_ft.runtimes.ir_logits import IRLogits
from intel_ft.runtimes.language_model import (
    Completion,
    Sampling,
    Stream,
    answer_limit,
    make_completion,
    read_context_window,
    tokenizer_config,
)
from intel_ft.runtimes.text_stream import TextStream

T = TypeVar("T")

LARGE = 2**30  # bytes of an IR's weights


def load_openvino(artifact: Artifact) -> "OpenVINOLM":
    """The IR in `artifact`'s folder, with the Hugging Face tokenizer in that folder."""
    from intel_ft.models.tokenizer import load_tokenizer

    return OpenVINOLM(artifact.folder, load_tokenizer(tokenizer_config(artifact)))


class OpenVINOLM:
    """A `LanguageModel` on an IR folder, compiled on first use: for GenAI, or for logits.

    Each compiled form has a copy of the weights, so of a LARGE IR only the last used one is kept.
    They use the plugin's defaults, as a server will (with AMX, bf16 arithmetic; for an int8 IR, an
    8-bit KV cache and dynamically quantized activations), unless `properties`, under OpenVINO's
    names, override them. Raises EnvironmentProblem without the `openvino` extra, UserError for an
    IR that cannot be read.
    """

    def __init__(
        self, folder: Path, tokenizer: Any, properties: dict[str, str] | None = None
    ) -> None:
        require_openvino("openvino", "openvino_genai")
        self.tokenizer = tokenizer
        self.context_window = read_context_window(folder)
        self._folder = folder
        self._properties = properties or {}
        self._compiled: dict[str, Any] = {}

    def _kept(self, form: str, compile_it: Callable[[], Any]) -> Any:
        """The compiled `form`, made now unless it is there."""
        if form not in self._compiled:
            file = (self._folder / IR_FILE).with_suffix(".bin")
            if file.is_file() and file.stat().st_size >= LARGE:
                self._compiled.clear()
            self._compiled[form] = opened(self._folder, compile_it)
        return self._compiled[form]

    def _pipeline(self) -> Any:
        import openvino_genai

        return openvino_genai.LLMPipeline(str(self._folder), "CPU", **self._properties)

    def _logits(self) -> IRLogits:
        return IRLogits(self._folder, self._properties)

    @cached_property
    def _stops(self) -> frozenset[int]:
        import openvino_genai

        path = self._folder / "generation_config.json"  # read here, so that logits need no pipeline
        config = openvino_genai.GenerationConfig(str(path)) if path.is_file() else None
        return stop_tokens(self.tokenizer, sorted(config.stop_token_ids) if config else [])

    def precisions(self) -> dict[str, str | None]:
        """The precisions of inference and KV cache, as the plugin reports them."""
        compiled = self._kept("logits", self._logits).compiled
        return {
            "inference_precision": type_name(compiled, "INFERENCE_PRECISION_HINT"),
            "kv_cache_precision": type_name(compiled, "KV_CACHE_PRECISION"),
        }

    def generate(
        self, prompt_tokens: list[int], sampling: Sampling, stream: Stream | None = None
    ) -> Completion:
        """See `LanguageModel.generate`."""
        import openvino

        config = self._config(prompt_tokens, sampling, sampling.seed)
        # Token ids, not text: they already contain the training template, and to text GenAI would
        # apply the tokenizer's chat template again.
        prompt = openvino.Tensor(np.array([prompt_tokens], dtype=np.int64))
        text = None
        if stream:
            text = TextStream(self.tokenizer, stream, self._stops, sampling.stop)
        pipeline = self._kept("pipeline", self._pipeline)
        start = time.monotonic()
        new_tokens = _generate_in_thread(pipeline, prompt, config, text)
        seconds = time.monotonic() - start
        return self._completion(new_tokens, seconds, sampling)

    def generate_many(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[Completion]:
        """See `LanguageModel.generate_many`.

        GenAI's continuous batching: a finished sequence makes room for others at once.
        """
        import openvino

        configs = [
            self._config(one, sampling, seed) for one, seed in zip(prompts, seeds, strict=True)
        ]
        tensors = [openvino.Tensor(np.array([one], dtype=np.int64)) for one in prompts]
        pipeline = self._kept("batch pipeline", self._batch_pipeline)
        start = time.monotonic()
        results = pipeline.generate(tensors, configs)
        seconds = time.monotonic() - start
        return [
            self._completion(list(result.m_generation_ids[0]), seconds, sampling)
            for result in results
        ]

    def _batch_pipeline(self) -> Any:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        return openvino_genai.ContinuousBatchingPipeline(
            str(self._folder), scheduler, "CPU", self._properties
        )

    def _completion(self, new_tokens: list[int], seconds: float, sampling: Sampling) -> Completion:
        return make_completion(
            self.tokenizer, new_tokens, self._stops, seconds, stop_texts=sampling.stop
        )

    def _config(self, prompt_tokens: list[int], sampling: Sampling, seed: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = answer_limit(
            prompt_tokens, sampling.max_new_tokens, self.context_window
        )
        config.do_sample = sampling.temperature > 0
        config.repetition_penalty = sampling.repetition_penalty
        config.stop_token_ids = set(self._stops)
        if sampling.temperature > 0:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.rng_seed = seed
            if sampling.top_k:  # GenAI rejects 0; its default, a very large number, is "all"
                config.top_k = sampling.top_k
        config.stop_strings = set(sampling.stop)
        config.include_stop_str_in_output = (
            True  # make_completion cuts at characters, GenAI at tokens
        )
        return config

    def logits(
        self, tokens: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `LanguageModel.logits`."""
        logits: npt.NDArray[np.float32] = self._kept("logits", self._logits).at(tokens, positions)
        return logits


def _generate_in_thread(
    pipeline: Any, prompt: Any, config: Any, text: TextStream | None
) -> list[int]:
    """Run the pipeline in another thread; stream and receive Ctrl-C in this one.

    GenAI (2026.4) calls a streamer from its own thread, where an exception aborts the process, and
    blocks the calling thread, to which Python delivers signals. So the streamer only fills a
    queue, and an exception in this thread cancels the generation.
    """
    import openvino_genai

    arrived: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    cancelled = threading.Event()
    result: list[int] = []
    failure: list[Exception] = []

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
        def write(self, token: int | list[int]) -> Any:
            for one in [token] if isinstance(token, int) else token:
                arrived.put(one)
            status = openvino_genai.StreamingStatus
            return status.CANCEL if cancelled.is_set() else status.RUNNING

        def end(self) -> None:
            pass

    def work() -> None:
        try:
            result.extend(pipeline.generate(prompt, config, Streamer()).tokens[0])
        except Exception as error:
            failure.append(error)
        finally:
            arrived.put(None)

    worker = threading.Thread(target=work, name="openvino-generate")
    worker.start()
    try:
        while (token := arrived.get()) is not None:
            if text:
                text.add(token)
    finally:
        cancelled.set()
        worker.join()
    if failure:
        raise failure[0]
    if text:
        text.end()
    return result


def type_name(compiled: Any, name: str) -> str:
    """The value of a property of a compiled model that is an element type."""
    return str(compiled.get_property(name).get_type_name())


def opened(path: Path, load: Callable[[], T]) -> T:
    """What `load` returns. Raises UserError that names `path` where OpenVINO cannot load it.

    The message of an OpenVINO error follows lines of C++ source positions.
    """
    try:
        return load()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[-1] if lines else repr(error)
        raise UserError(f"{path}: OpenVINO cannot load this model: {why}") from error
