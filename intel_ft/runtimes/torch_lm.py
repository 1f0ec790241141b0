"""Run a base, adapter or merged model in torch on this CPU."""

import logging
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.int4_base import (
    find_int4_base,
    open_int4_base,
    require_any_base,
    trained_int4,
)
from intel_ft.artifacts.model_folder import stop_tokens
from intel_ft.artifacts.resolve import Artifact
from intel_ft.gc_pause import gc_paused
from intel_ft.layers.fused_experts import fuse_experts
from intel_ft.models.saved_adapter import apply_adapter
from intel_ft.models.tokenizer import require_embedded
from intel_ft.runtimes.language_model import (
    Completion,
    Sampling,
    Stream,
    answer_limit,
    base_config,
    make_completion,
    tokenizer_config,
)
from intel_ft.runtimes.text_stream import TextStream

logger = logging.getLogger(__name__)


def load_torch(
    artifact: Artifact,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> "TorchLM":
    """Load `artifact` (not an IR) with weights in `dtype`; an adapter's own stay in fp32.

    "auto" is bfloat16 where the CPU has bf16 instructions, else float32.
    """
    with gc_paused():
        import torch

        from intel_ft.backends.cpu import fastest_dtype
        from intel_ft.models.load import load_base, load_tokenizer

    config = base_config(artifact, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    model = load_base(config, fastest_dtype()[0] if dtype == "auto" else getattr(torch, dtype))
    if artifact.kind == "adapter":
        _use_trained_base(model, artifact)
        model = apply_adapter(model, artifact.folder)
        fuse_experts(model)  # peft's forward would build the delta of all experts for each token
    tokenizer = load_tokenizer(tokenizer_config(artifact, trust_remote_code=trust_remote_code))
    return TorchLM(model, tokenizer)


def _use_trained_base(model: Any, artifact: Artifact) -> None:
    """Give the base the int4 weights that the adapter was trained on, if it was and they exist."""
    digest = trained_int4(artifact.folder)
    if digest is None:
        return
    from intel_ft.models.compressed import use_compressed

    folder = find_int4_base(digest)
    if folder is None:
        require_any_base(artifact.folder)
        logger.warning(
            "%s was trained on int4 weights, which this machine's cache does not have: it runs on "
            "its unquantized base instead (export --adapter makes them again)",
            artifact.location,
        )
        return
    use_compressed(model, open_int4_base(folder).weights)


class TorchLM:
    """A `LanguageModel` on a Transformers or peft model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformers import GenerationConfig

        self.model = model.eval()
        self.tokenizer = tokenizer
        self.context_window = getattr(model.config, "max_position_embeddings", None)
        generation = model.generation_config
        self._stops = stop_tokens(tokenizer, generation.eos_token_id if generation else None)
        # Otherwise generate() takes temperature, top_p and others from the base's generation
        # config wherever a call leaves them at their defaults.
        model.generation_config = GenerationConfig()

    def generate(
        self, prompt_tokens: list[int], sampling: Sampling, stream: Stream | None = None
    ) -> Completion:
        """See `LanguageModel.generate`."""
        text = None
        if stream:
            text = TextStream(self.tokenizer, stream, self._stops, sampling.stop)
        streamer = _Streamer(text, len(prompt_tokens)) if text else None
        return self._generate([prompt_tokens], [sampling.seed], sampling, streamer)[0]

    def generate_many(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[Completion]:
        """See `LanguageModel.generate_many`."""
        window = self.context_window
        limits = [answer_limit(one, sampling.max_new_tokens, window) for one in prompts]
        if len(prompts) == 1 or window is None or min(limits) == sampling.max_new_tokens:
            return self._generate(prompts, seeds, sampling)
        # In one batch, a prompt that nearly fills the window would shorten the other answers.
        pairs = zip(prompts, seeds, strict=True)
        return [self._generate([one], [seed], sampling)[0] for one, seed in pairs]

    def _generate(
        self,
        prompts: list[list[int]],
        seeds: list[int],
        sampling: Sampling,
        streamer: "_Streamer | None" = None,
    ) -> list[Completion]:
        import torch
        from transformers import GenerationConfig

        from intel_ft.runtimes.torch_sampling import RepetitionPenalty, SeededRows, StopTexts

        width = max(map(len, prompts))
        max_new_tokens = answer_limit(
            max(prompts, key=len), sampling.max_new_tokens, self.context_window
        )
        for one in prompts:
            answer_limit(one, 1, self.context_window)
            self._require_embedded(np.array(one))
        # Padding with a stop token: make_completion cuts off what follows the end of a row.
        pad = min(self._stops, default=self.tokenizer.pad_token_id or 0)
        # SeededRows draws the tokens, each row with its own seed; generate() itself is greedy.
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self._stops) or None,
            pad_token_id=pad,
        )
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(prompts):
            ids[row, width - len(one) :] = torch.tensor(one)
            mask[row, width - len(one) :] = 1
        processors: list[Any] = []
        if sampling.repetition_penalty != 1:
            starts = [width - len(one) for one in prompts]
            processors.append(RepetitionPenalty(sampling.repetition_penalty, starts))
        if sampling.temperature:
            processors.append(SeededRows(sampling, seeds))
        start = time.monotonic()
        with torch.inference_mode():
            answers = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=[StopTexts(self.tokenizer, sampling.stop, width)],
                streamer=streamer,
            )
        seconds = time.monotonic() - start
        new = answers[:, width:].tolist()
        return [
            make_completion(self.tokenizer, one, self._stops, seconds, sampling.stop) for one in new
        ]

    def logits(
        self, tokens: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `LanguageModel.logits`."""
        import torch

        self._require_embedded(tokens)
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
                logits_to_keep=torch.from_numpy(positions),
                use_cache=False,
            )
        logits: npt.NDArray[np.float32] = output.logits[0].float().numpy()
        return logits

    def _require_embedded(self, tokens: npt.NDArray[Any]) -> None:
        rows = self.model.get_input_embeddings().weight.shape[0]
        if tokens.max() >= rows:
            require_embedded(self.tokenizer, rows, [tokens])


class _Streamer:
    """A streamer for Transformers' generate(): `put` gets the prompt, then each new token."""

    def __init__(self, text: TextStream, prompt_length: int) -> None:
        self._text = text
        self._prompt_left = prompt_length

    def put(self, value: Any) -> None:
        for token in value.flatten().tolist():
            if self._prompt_left:
                self._prompt_left -= 1
            else:
                self._text.add(token)

    def end(self) -> None:
        self._text.end()
