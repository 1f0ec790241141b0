"""A small model drafts, a large one checks: OpenVINO GenAI's speculative decoding.

    python examples/speculative.py LARGE SMALL "Write a function that reverses a list."

LARGE and SMALL are folders of `intel-ft export` with the same tokenizer, such as a model and the
student that was distilled from it (`method.name: distill`): the closer the student, the more of
what it drafts is kept. The answer is the large model's own; what is gained is time, on machines
where a token of the large model costs much more than one of the small. Prints both answers' times.
"""

import sys
import time
from typing import Any

import openvino_genai as genai

TOKENS, DRAFTED = 128, 4


def answer(pipeline: Any, prompt: str, drafted: int) -> tuple[str, float]:
    """The greedy answer, and its seconds after a first one to warm up."""
    config = genai.GenerationConfig()
    config.max_new_tokens = TOKENS
    if drafted:
        config.num_assistant_tokens = drafted
    pipeline.generate([prompt], config)
    began = time.perf_counter()
    text = pipeline.generate([prompt], config).texts[0]
    return text, time.perf_counter() - began


def main() -> None:
    """Ask the large model alone, then with the small one's drafts."""
    large, small, prompt = sys.argv[1:]
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1  # GiB
    alone = genai.LLMPipeline(large, "CPU", scheduler_config=scheduler)
    text, seconds = answer(alone, prompt, 0)
    print(f"{text}\n\nalone: {seconds:.2f} s")
    del alone
    draft = genai.draft_model(small, "CPU")
    both = genai.LLMPipeline(large, "CPU", scheduler_config=scheduler, draft_model=draft)
    drafted, shorter = answer(both, prompt, DRAFTED)
    print(f"with drafts: {shorter:.2f} s, {'the same' if drafted == text else 'another'} answer")


if __name__ == "__main__":
    main()
