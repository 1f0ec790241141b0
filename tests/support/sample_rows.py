"""A few rows in the form of each dataset that recipes and foreign configs name; used by tests."""

import json
from pathlib import Path

FORMS = {
    "alpaca": [
        {
            "instruction": f"Name {n} rivers.",
            "input": "In Europe." * (n % 2),
            "output": f"Rhine {n}",
        }
        for n in range(8)
    ],
    # iamtarun/python_code_instructions_18k_alpaca: its fourth column repeats the others
    "python": [
        {
            "instruction": f"Add {n} to x.",
            "input": "",
            "output": f"def f(x):\n    return x + {n}",
            "prompt": f"Below is an instruction.\n### Instruction:\nAdd {n} to x.",
        }
        for n in range(8)
    ],
    "dolly": [
        {
            "instruction": f"What is {n}?",
            "context": "Numbers." * (n % 2),
            "response": "A number.",
            "category": "closed_qa",
        }
        for n in range(8)
    ],
    "ready-made": [{"text": f"<s>[INST] What is {n}? [/INST] A number. </s>"} for n in range(8)],
    "ready-made with a system prompt": [
        {"text": f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nList {n}. [/INST] ls -{n} </s>"}
        for n in range(8)
    ],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "A number."},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": f"{n + 1}"},
            ],
            "prompt_id": f"{n}",
            "category": "Chat",
        }
        for n in range(8)
    ],
    # HuggingFaceH4/ultrafeedback_binarized
    "preference": [
        {
            "prompt": f"What is {n}?",
            "prompt_id": f"{n}",
            "chosen": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "A number."},
            ],
            "rejected": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"What do you mean by {n}?"},
            ],
            "messages": [{"role": "user", "content": f"What is {n}?"}],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        }
        for n in range(8)
    ],
    # argilla/dpo-mix-7k
    "chosen and rejected": [
        {
            "dataset": "mix",
            "chosen": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "A number."},
            ],
            "rejected": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"Why {n}?"},
            ],
            "chosen_rating": 4.5,
            "rejected_rating": 3.0,
        }
        for n in range(8)
    ],
    # trl-lib/kto-mix-14k
    "judged": [
        {
            "prompt": [{"role": "user", "content": f"What is {n}?"}],
            "completion": [{"role": "assistant", "content": "A number." if n % 2 else "Why?"}],
            "label": bool(n % 2),
        }
        for n in range(8)
    ],
    "question_answer": [{"question": f"What is {n}?", "answer": "A number."} for n in range(8)],
}


def write_form(folder: Path, form: str) -> Path:
    """Write the rows of `form` to rows.jsonl in `folder`."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FORMS[form]), encoding="utf-8")
    return path
