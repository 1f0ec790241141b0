"""Every format that LLaMA-Factory, Axolotl, TRL and OpenAI document: read, and three steps trained.

One small file of each, with what is trained on of its first row; those refused, with the reason.
"""

import json

import pytest
from support.agent_templates import family
from support.small_runs import config_in, fill, make_bases
from transformers import AutoTokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.errors import UserError
from intel_ft.training.run import train

TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": TOOL}]
CALL = {"name": "add", "arguments": {"a": 1}}
USER, ANSWER = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
HUMAN, GPT = {"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}
OPENAI_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "1"}
WRITTEN_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
THOUGHT = "<think>\n\n</think>\n\n"
A = f"{THOUGHT}A.<|im_end|>"
CONVERSATIONS = {"columns": {"messages": "conversations"}}

ACCEPTED = {
    # LLaMA-Factory, data/README.md
    "alpaca": ({"instruction": "Q?", "input": "", "output": "A."}, {}, A),
    "alpaca with history": (
        {
            "instruction": "Q?",
            "input": "c",
            "output": "A.",
            "system": "S",
            "history": [["H?", "I."]],
        },
        {"earlier_answers": "context"},
        A,
    ),
    "alpaca with tools": (
        {"instruction": "Q?", "output": "A.", "tools": json.dumps([TOOL])},
        {},
        A,
    ),
    "LLaMA-Factory sharegpt": (
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "1"},
                GPT,
            ],
            "system": "S",
            "tools": json.dumps([TOOL]),
        },
        CONVERSATIONS | {"loss_on": "last"},
        A,
    ),
    "LLaMA-Factory openai": ({"messages": [USER, ANSWER]}, {}, A),
    "LLaMA-Factory pre-training": ({"text": "plain words"}, {}, "plain words<|im_end|>"),
    # Axolotl, docs/dataset-formats
    "Axolotl chat_template": (
        {"messages": [USER, {**ANSWER, "train": False}, USER, ANSWER]},
        {},
        A,
    ),
    "Axolotl chat_template, sharegpt names": ({"conversations": [HUMAN, GPT]}, CONVERSATIONS, A),
    "Axolotl tools": (
        {"messages": [USER, OPENAI_CALL], "tools": TOOLS},
        {},
        THOUGHT + WRITTEN_CALL,
    ),
    "Axolotl input_output": (
        {
            "segments": [
                {"label": False, "text": "<|im_start|>user\nQ?<|im_end|>\n"},
                {"label": True, "text": "A.<|im_end|>"},
            ]
        },
        {},
        "A.<|im_end|>",
    ),
    "Axolotl completion": ({"text": "plain words"}, {}, "plain words<|im_end|>"),
    "Axolotl alpaca_chat.load_qa": ({"question": "Q?", "answer": "A."}, {}, A),
    "Axolotl pre-tokenized": (
        {"input_ids": [5, 40, 41, 42], "labels": [-100, -100, 41, 42], "attention_mask": [1] * 4},
        {},
        None,
    ),
    # TRL, docs/source/dataset_formats.md
    "TRL language modeling": ({"text": "plain words"}, {}, "plain words<|im_end|>"),
    "TRL conversational": ({"messages": [USER, ANSWER]}, {}, A),
    "TRL prompt-completion": (
        {"prompt": "Q?", "completion": "A."},
        {"template": "none"},
        "A.<|im_end|>",
    ),
    "TRL conversational prompt-completion": ({"prompt": [USER], "completion": [ANSWER]}, {}, A),
    "TRL tool calling": (
        {
            "messages": [
                USER,
                OPENAI_CALL,
                {"role": "tool", "name": "add", "content": "1"},
                ANSWER,
            ],
            "tools": TOOLS,
        },
        {"earlier_answers": "context"},
        A,
    ),
    # OpenAI, supervised fine-tuning guide
    "OpenAI chat": ({"messages": [{"role": "system", "content": "S"}, USER, ANSWER]}, {}, A),
    "OpenAI weights": (
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]},
        {},
        A,
    ),
    "OpenAI tools": (
        {
            "messages": [USER, OPENAI_CALL, RESULT, ANSWER],
            "tools": TOOLS,
            "parallel_tool_calls": False,
        },
        {"earlier_answers": "context"},
        A,
    ),
    "OpenAI functions": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "add", "arguments": '{"a": 1}'},
                },
            ],
            "functions": [TOOL],
        },
        {},
        THOUGHT + WRITTEN_CALL,
    ),
    "reasoning in a key": (
        {"messages": [USER, {**ANSWER, "reasoning_content": "why"}]},
        {},
        "<think>\nwhy\n</think>\n\nA.<|im_end|>",
    ),
    "parts of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q?"}]}, ANSWER]},
        {},
        A,
    ),
}
REFUSED = {
    "LLaMA-Factory, images": ({"messages": [USER, ANSWER], "images": ["a.jpg"]}, "images: "),
    "LLaMA-Factory, ranking": ({"instruction": "Q?", "chosen": "A.", "rejected": "B."}, "chosen"),
    "LLaMA-Factory, KTO": ({"messages": [USER, ANSWER], "kto_tag": True}, "kto_tag"),
    "Axolotl, stepwise": ({"prompt": "Q?", "completions": ["A."], "labels": [True]}, "completions"),
    "TRL, preference": ({"prompt": "Q?", "chosen": "A.", "rejected": "B."}, "chosen"),
    "TRL, prompt only": ({"prompt": "Q?"}, "no supported format"),
    "OpenAI, vision": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
        "image_url",
    ),
    "OpenAI, preference": (
        {"input": {"messages": [USER]}, "preferred_output": [ANSWER]},
        "preferred",
    ),
}


def write(folder, name, row):
    file = folder / f"{name.replace(' ', '-').replace(',', '')}.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 2)
    return str(file)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_trained_on(tmp_path, name):
    row, data, expected = ACCEPTED[name]
    file = write(tmp_path, name, row)
    tokenizer = family("qwen 3")
    prepared = prepare(DataConfig(train=file, **data), file, tokenizer)
    assert len(prepared.examples) == 2
    ids, trained = prepared.examples[0]
    if expected is not None:
        assert tokenizer.decode(ids[trained]) == expected
    else:
        assert ids[trained].tolist() == [41, 42]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    row, words = REFUSED[name]
    file = write(tmp_path, name, row)
    with pytest.raises(UserError, match=words):
        prepare(DataConfig(train=file), file, family("qwen 3"))


def test_three_steps_on_all_of_them(tmp_path):
    """One source of each format, mixed in one run."""
    fill(tmp_path, make_bases(tmp_path / "bases"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = family("qwen 3").chat_template
    tokenizer.save_pretrained(tmp_path / "base")
    keys = ("columns", "template")
    sources = [
        {"path": write(tmp_path, name, row)} | {key: data[key] for key in keys if key in data}
        for name, (row, data, _) in ACCEPTED.items()
    ]
    data = {"train": sources, "eval": None, "template": "auto", "max_length": 512}
    config = config_in(
        tmp_path, data=data, max_steps=3, eval_steps=None, global_batch_size=16,
        max_tokens_per_row=512,
    )  # fmt: skip
    summary = train(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert summary.steps == 3 and len(losses) == 3 and all(0 < loss < 20 for loss in losses)
