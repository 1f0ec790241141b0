"""Speculative decoding with OpenVINO GenAI: a small model drafts, a large model verifies.

    python examples/speculative.py LARGE SMALL "Write a function that reverses a list."

LARGE and SMALL are folders of `intel-ft export` with the same tokenizer, such as a model and the
student that was distilled from it (`method.name: distill`): the closer the student, the more draft
tokens are accepted. The answer is that of the large model. It is faster where a token of the large
model costs much more than one of the small model. Prints the time with and without drafts.
"""

import sys
import time
from typing import Any

import openvino_genai as genai

MAX_NEW_TOKENS, DRAFT_TOKENS = 128, 4


def answer(pipeline: Any, prompt: str, draft_tokens: int) -> tuple[str, float]:
    """The greedy answer, and its time in seconds after a warm-up."""
    config = genai.GenerationConfig()
    config.max_new_tokens = MAX_NEW_TOKENS
    if draft_tokens:
        config.num_assistant_tokens = draft_tokens
    pipeline.generate([prompt], config)
    began = time.perf_counter()
    text = pipeline.generate([prompt], config).texts[0]
    return text, time.perf_counter() - began


def main() -> None:
    """Ask the large model alone, then with drafts of the small one."""
    large, small, prompt = sys.argv[1:]
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1  # GiB
    alone = genai.LLMPipeline(large, "CPU", scheduler_config=scheduler)
    text, seconds = answer(alone, prompt, 0)
    print(f"{text}\n\nalone: {seconds:.2f} s")
    del alone
    draft = genai.draft_model(small, "CPU")
    both = genai.LLMPipeline(large, "CPU", scheduler_config=scheduler, draft_model=draft)
    drafted, faster = answer(both, prompt, DRAFT_TOKENS)
    same = "the same answer" if drafted == text else "a different answer"
    print(f"with drafts: {faster:.2f} s, {same}")


if __name__ == "__main__":
    main()
