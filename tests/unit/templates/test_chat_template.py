"""What is trained is what the chat_template gives, and its prompt is what a server sends."""

import numpy as np
import pytest
from support import chat_templates
from support.data_tokenizers import tokenizer
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.errors import UserError
from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.prompt import prompt_tokens
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import renderer
from intel_ft.templates.template_check import template_notes
from intel_ft.templates.thoughts import split_thought

CONTROLS = [
    *("<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|start|>", "<|end|>"),
    *("<|return|>", "<|channel|>", "<|message|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[gMASK]", "<sop>", "<|channel>", "<channel|>"),
]
ASK, AGAIN = Message("user", "How are you?"), Message("user", "and now?")
WELL, BETTER = Message("assistant", "It is well."), Message("assistant", "It is better.")
THOUGHT = Message("assistant", "<think>\neasy\n</think>\n\nIt is well.")
THOUGHT_AGAIN = Message("assistant", "<think>\nadd\n</think>\n\nIt is better.")
SYSTEM = Message("system", "Be brief.")


def model(kind, template, eos="</s>"):
    """A tokenizer of a family: `kind` of support.data_tokenizers with the family's control tokens.

    "phi": as "llama, prepend", where control tokens take the white space after them.
    """
    base = tokenizer("llama, prepend" if kind == "phi" else kind)
    backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
    if kind.startswith("byte") or kind == "phi":
        tokens = [AddedToken(text, normalized=False, rstrip=kind == "phi") for text in CONTROLS]
        backend.add_special_tokens(tokens)
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
    tok.chat_template = template
    return tok


def encoded(tok, messages):
    special = special_tokens_of(tok)
    spans = renderer("tokenizer", tok, special, None)(Conversation(tuple(messages)))
    ids, learnt = SpanEncoder(tok, special).encode([spans])[0]
    return ids.tolist(), learnt


def learnt_texts(tok, messages):
    """The supervised stretches, decoded."""
    ids, learnt = encoded(tok, messages)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], learnt.astype(int), [0]))))
    return [tok.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def sent(tok, messages, **options):
    """The ids of `apply_chat_template`."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tok.apply_chat_template(turns, tokenize=False, **options)
    return tok.encode(text, add_special_tokens=False)


def trained_prompt(tok, messages):
    ids, learnt = encoded(tok, messages)
    return ids[: int(np.flatnonzero(~learnt)[-1]) + 1]


def notes(tok, *conversations):
    return template_notes(tok, special_tokens_of(tok), map(Conversation, conversations))


EXACT = {
    "chatml": ("byte", chat_templates.CHATML, "<|im_end|>"),
    "llama3": ("byte", chat_templates.LLAMA3, "<|eot_id|>"),
    "gemma": ("byte", chat_templates.GEMMA, "</s>"),
    "zephyr, llama 2's tokenizer": ("llama, prepend", chat_templates.ZEPHYR, "</s>"),
    "zephyr, another spm": ("llama, first", chat_templates.ZEPHYR, "</s>"),
    "zephyr, unigram": ("unigram", chat_templates.ZEPHYR, "</s>"),
    "vicuna, llama 2's tokenizer": ("llama, prepend", chat_templates.VICUNA, "</s>"),
    "vicuna, byte-level": ("byte", chat_templates.VICUNA, "</s>"),
    "phi3": ("phi", chat_templates.PHI3, "</s>"),
    "mistral": ("llama, first", chat_templates.MISTRAL, "</s>"),
    "mistral, byte-level": ("byte", chat_templates.MISTRAL, "</s>"),
    "glm4": ("byte", chat_templates.GLM4, "</s>"),
    "gpt-oss": ("byte", chat_templates.GPT_OSS, "<|return|>"),
    "qwen3": ("byte", chat_templates.QWEN3, "<|im_end|>"),
}


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("turns", [(ASK, WELL), (ASK, WELL, AGAIN, BETTER)])
def test_ids_are_those_of_apply_chat_template(family, turns):
    kind, template, eos = EXACT[family]
    tok = model(kind, template, eos)
    ids, _ = encoded(tok, turns)
    whole = sent(tok, turns)
    assert trained_prompt(tok, turns) == sent(tok, turns[:-1], add_generation_prompt=True)
    if family == "phi3":  # `<|end|>` takes the line break in front of EOS
        assert ids == whole
        return
    end = len(ids) - (ids[-1] == tok.eos_token_id and tok.eos_token not in template)
    assert ids[: end - 1] == whole[: end - 1]
    assert not [note for note in notes(tok, turns) if " here, " in note]


def test_no_second_bos_and_no_space_in_front_of_an_answer():
    """TinyLlama's and Zephyr's template on Llama 2's tokenizer: `<s>` and `▁It` were wrong."""
    tok = model("llama, prepend", chat_templates.ZEPHYR)
    ids, learnt = encoded(tok, (ASK, WELL))
    assert tok.bos_token_id not in ids
    answer = tok.convert_ids_to_tokens(np.array(ids)[learnt].tolist())
    assert answer[0] == "I" and answer[-1] == "</s>"
    built_in = renderer("alpaca", tok, special_tokens_of(tok), None)(Conversation((ASK, WELL)))
    ids, learnt = SpanEncoder(tok, special_tokens_of(tok)).encode([built_in])[0]
    assert tok.convert_ids_to_tokens(ids[learnt].tolist())[0] == "I"
    assert ids[0] == tok.bos_token_id  # these templates are our own: BOS comes first


def test_phi3_has_no_line_break_that_its_end_of_turn_takes():
    tok = model("phi", chat_templates.PHI3)
    ids, _ = encoded(tok, (ASK, WELL, AGAIN, BETTER))
    tokens = tok.convert_ids_to_tokens(ids)
    assert tokens[tokens.index("<|end|>") + 1] == "<|assistant|>"


def test_gpt_oss_learns_the_channel_and_stops_at_return_alone():
    tok = model("byte", chat_templates.GPT_OSS, "<|return|>")
    turns = (ASK, WELL, AGAIN, BETTER)
    ids, _ = encoded(tok, turns)
    assert ids == sent(tok, turns)
    assert learnt_texts(tok, turns) == [
        "<|channel|>final<|message|>It is well.",
        "<|channel|>final<|message|>It is better.<|return|>",
    ]
    asked = sent(tok, (ASK,), add_generation_prompt=True)
    prompt = prompt_tokens(tok, "tokenizer", (ASK,))
    assert prompt[: len(asked)] == asked == trained_prompt(tok, (ASK, WELL))
    assert tok.decode(prompt[len(asked) :]) == "<|channel|>final<|message|>"
    # Thoughts go to their own channel; that of an earlier turn is dropped, which is then context.
    assert learnt_texts(tok, (ASK, THOUGHT, AGAIN, THOUGHT_AGAIN)) == [
        "<|channel|>analysis<|message|>add<|end|><|start|>assistant"
        "<|channel|>final<|message|>It is better.<|return|>"
    ]


def test_qwen3_has_one_thought_and_the_prompt_of_a_server():
    tok = model("byte", chat_templates.QWEN3, "<|im_end|>")
    asked = sent(tok, (ASK,), add_generation_prompt=True)
    for answer in (WELL, THOUGHT):
        ids, _ = encoded(tok, (ASK, answer))
        assert ids == sent(tok, (ASK, answer))[:-1]  # all but the line break after the end
        assert trained_prompt(tok, (ASK, answer)) == asked
        assert prompt_tokens(tok, "tokenizer", (ASK,)) == asked
    assert learnt_texts(tok, (ASK, WELL)) == ["<think>\n\n</think>\n\nIt is well.<|im_end|>"]
    assert learnt_texts(tok, (ASK, THOUGHT)) == ["<think>\neasy\n</think>\n\nIt is well.<|im_end|>"]
    # An earlier thought is dropped as the template drops it, and that answer is context.
    turns = (ASK, THOUGHT, AGAIN, THOUGHT_AGAIN)
    assert encoded(tok, turns)[0] == sent(tok, turns)[:-1]
    assert learnt_texts(tok, turns) == ["<think>\nadd\n</think>\n\nIt is better.<|im_end|>"]
    told = notes(tok, (ASK, WELL))
    assert len(told) == 1 and repr("<think>\n\n</think>\n\n") in told[0]


@pytest.mark.parametrize(
    ("template", "eos"),
    [(chat_templates.DEEPSEEK_R1, "</s>"), (chat_templates.QWEN3_5, "<|im_end|>")],
)
def test_a_prompt_that_opens_a_thought(template, eos):
    tok = model("byte", template, eos)
    asked = sent(tok, (ASK,), add_generation_prompt=True)
    assert trained_prompt(tok, (ASK, WELL)) == trained_prompt(tok, (ASK, THOUGHT)) == asked
    assert learnt_texts(tok, (ASK, WELL)) == [f"\n</think>\n\nIt is well.{eos}"]
    assert learnt_texts(tok, (ASK, THOUGHT)) == [f"easy\n</think>\n\nIt is well.{eos}"]
    without_open = Message("assistant", "easy\n</think>\n\nIt is well.")
    assert encoded(tok, (ASK, without_open))[0] == encoded(tok, (ASK, THOUGHT))[0]
    # Where the conversation goes on, the template shows no thought: no server sends that prompt.
    turns = (ASK, THOUGHT, AGAIN, THOUGHT_AGAIN)
    asked = sent(tok, turns[:-1], add_generation_prompt=True)
    assert trained_prompt(tok, turns) == asked
    assert len(learnt_texts(tok, (ASK, WELL, AGAIN, BETTER))) == 1


def test_a_prompt_with_an_empty_thought_of_its_own():
    tok = model("byte", chat_templates.GEMMA4)
    asked = sent(tok, (ASK,), add_generation_prompt=True)
    assert trained_prompt(tok, (ASK, WELL)) == asked
    assert learnt_texts(tok, (ASK, WELL)) == ["It is well.<end_of_turn></s>"]
    assert any("the conversation is not what" in note for note in notes(tok, (ASK, WELL)))


def test_a_call_behind_a_prompt_with_an_empty_thought():
    call = " + ('<|start|>' + m.tool_calls[0].function.name if m.tool_calls else '')"
    tok = model(
        "byte", chat_templates.GEMMA4.replace("m.content | trim", f"m.content | trim{call}")
    )
    calls = '[{"type": "function", "function": {"name": "add", "arguments": {}}}]'
    turns = (ASK, Message("assistant", "", calls=calls))
    assert trained_prompt(tok, turns) == sent(tok, (ASK,), add_generation_prompt=True)
    assert learnt_texts(tok, turns) == ["<|start|>add<end_of_turn></s>"]


def test_a_template_without_thoughts_keeps_them_as_they_are():
    tok = model("byte", chat_templates.CHATML, "<|im_end|>")
    odd = Message("assistant", "<think> easy</think>  It is well.")
    assert learnt_texts(tok, (ASK, odd, AGAIN, THOUGHT_AGAIN)) == [
        f"{odd.content}<|im_end|>",
        f"{THOUGHT_AGAIN.content}<|im_end|>",
    ]


def test_a_thought_that_no_prompt_asks_for_is_refused():
    closed = chat_templates.DEEPSEEK_R1.replace("<think>\n", "</think>")
    with pytest.raises(UserError, match="leaves out the reasoning of the last answer"):
        encoded(model("byte", closed), (ASK, THOUGHT))


def test_a_system_message_that_the_template_drops_is_named():
    tok = model("llama, first", chat_templates.MISTRAL)
    # A question is trained on as a server sends it; the whole conversation would lack the system.
    turns = (SYSTEM, ASK, WELL, AGAIN, BETTER)
    assert trained_prompt(tok, turns) == sent(tok, turns[:-1], add_generation_prompt=True)
    assert learnt_texts(tok, turns) == ["It is better.</s>"]  # the first had it in front
    asked = sent(tok, (SYSTEM, ASK), add_generation_prompt=True)
    assert trained_prompt(tok, (SYSTEM, ASK, WELL)) == asked
    assert learnt_texts(tok, (SYSTEM, ASK, WELL)) == ["It is well.</s>"]
    assert "the conversation is not what" in notes(tok, (SYSTEM, ASK, WELL))[0]
    always = chat_templates.MISTRAL.replace("system + ", "")
    with pytest.raises(UserError, match="drops the system message"):
        encoded(model("llama, first", always), (SYSTEM, ASK, WELL))


def test_a_template_that_writes_the_date_gives_the_same_tokens_on_every_day():
    """Llama 3.2's and gpt-oss's: a run resumed on the next day would train on other data."""
    dated = "{{ 'Today: ' + strftime_now('%d %b %Y') }}" + chat_templates.ZEPHYR
    tok = model("byte", dated)
    assert tok.decode(encoded(tok, (ASK, WELL))[0]).startswith("Today: 26 Jul 2024")
    (note,) = notes(tok, (ASK, WELL))
    assert note.startswith("the chat_template writes today's date")


def test_a_prompt_that_differs_is_shown_with_both_texts():
    template = chat_templates.ZEPHYR.replace("{{ '<|assistant|>\n' }}", "{{ '<|assistant|>\n# ' }}")
    (note,) = notes(model("byte", template), (ASK, WELL))
    assert note.startswith("the prompt is not what a server sends")
    assert "assistant|>\\n' here" in note and "assistant|>\\n# ' there" in note
    assert not notes(model("llama, prepend", chat_templates.LLAMA2), (ASK, WELL, AGAIN, BETTER))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<think>\na\n</think>\n\nb", ("a", "b")),
        ("a</think>b", ("a", "b")),
        ("<think></think>b", ("", "b")),
        ("b", None),
        ("b <think> c", None),
        ("<think>a</think>b<think>c</think>d", None),
    ],
)
def test_what_a_thought_is(answer, expected):
    assert split_thought(answer) == expected


def test_prepare_reports_them_and_refuses_other_tags(tmp_path):
    tok = model("byte", chat_templates.QWEN3, "<|im_end|>")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "hi", "output": "well"}\n')
    data = DataConfig(train=str(file))
    assert any("a server sends" in line for line in prepare(data, str(file), tok).report.lines())
    file.write_text('{"instruction": "hi", "output": "so <think>a</think> b <think>c</think>"}\n')
    with pytest.raises(UserError, match="row 1: an answer contains <think>"):
        prepare(data, str(file), tok)


def test_text_that_the_tokenizer_loses_is_reported(tmp_path):
    """A byte-level vocabulary under Llama's pre-tokenizer, without a file to compare with."""
    from tokenizers import pre_tokenizers

    tok = model("byte", chat_templates.CHATML)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "The capital", "output": "Paris is it"}\n')
    data = DataConfig(train=str(file))
    assert not [line for line in prepare(data, str(file), tok).report.notes if "decode" in line]
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    (note,) = [line for line in prepare(data, str(file), tok).report.notes if "decode" in line]
    assert note.startswith("1 of 1 examples do not decode to their text") and "Thecapital" in note


def unasked(end, prompt, answer_end=None):
    """A template that writes the next answer's prompt, asked for or not, as ToolACE's."""
    head, _, tail = prompt.partition("assistant")
    return (
        f"{{% for m in messages %}}{{{{ {head!r} + m.role + {tail!r} + m.content }}}}"
        f"{{{{ {answer_end or end!r} if m.role == 'assistant' else {end!r} }}}}{{% endfor %}}"
        f"{{{{ {prompt!r} }}}}"
    )


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        # turns end alike; with a token of their own; with words; not at all
        (
            unasked("<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
            ("<|eot_id|>", "<|eot_id|></s>"),
        ),
        (unasked("\n", "assistant:", "</s>\n"), ("</s>", "</s>")),
        (unasked("<|end|>", "<|start|>assistant<|message|>", "</s>"), ("</s>", "</s>")),
        (unasked(" ###\n", "assistant: "), (" ###", " ###</s>")),
        (unasked("\n", "<|assistant|>\n"), ("", "</s>")),
    ],
)
def test_a_prompt_that_the_template_writes_unasked_is_not_learnt(template, ends):
    tok = model("byte", template)
    turns = (ASK, WELL, AGAIN, BETTER)
    assert learnt_texts(tok, turns) == [f"It is well.{ends[0]}", f"It is better.{ends[1]}"]
    assert trained_prompt(tok, turns) == sent(tok, turns[:-1], add_generation_prompt=True)
    assert not notes(tok, turns)


def test_an_answer_that_no_server_can_ask_for_is_compared_as_a_whole():
    wants_a_question = (
        "{% if not messages | selectattr('role', 'equalto', 'user') | list and"
        " add_generation_prompt %}{{ raise_exception('no question') }}{% endif %}"
    )
    tok = model("byte", wants_a_question + chat_templates.CHATML, "<|im_end|>")
    assert not notes(tok, (SYSTEM, WELL))
    assert learnt_texts(tok, (SYSTEM, WELL)) == ["It is well.<|im_end|>"]
