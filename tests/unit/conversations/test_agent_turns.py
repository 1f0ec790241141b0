"""Tools, thoughts and turns in any order: ids, mask and prompts are those of the chat template."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agent_templates import FAMILIES, family

from intel_ft.conversations.tools import tools_text
from intel_ft.conversations.turns import TurnRules, read_turns
from intel_ft.data.shown import shown_examples
from intel_ft.templates.chat_render import DATE, TemplateProblem
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.formats import Conversation
from intel_ft.templates.prompt import prompt_tokens
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template_check import compare, difference, template_notes

TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
]


def user(text="How are you?"):
    return {"role": "user", "content": text}


def says(text="It is well.", thought=None):
    return {"role": "assistant", "content": text} | (
        {"reasoning_content": thought} if thought else {}
    )


def calls(*arguments, text="", thought=None):
    return says(text, thought) | {
        "tool_calls": [
            {
                "id": f"call0000{number}",
                "type": "function",
                "function": {"name": "add", "arguments": one},
            }
            for number, one in enumerate(arguments)
        ]
    }


def result(text='{"sum": 4,\n "of": "é"}', number=0):
    return {"role": "tool", "content": text, "name": "add", "tool_call_id": f"call0000{number}"}


SYSTEM = {"role": "system", "content": "Be brief."}
ONE, TWO = {"a": 2, "b": 'x "y"\n'}, {"a": [1, {"c": None}]}
SHAPES = {
    "one turn": [user(), says()],
    "system": [SYSTEM, user(), says()],
    "several turns": [user(), says(), user("and now?"), says("It is better.")],
    "a tool": [user(), calls(ONE), result(), says()],
    "parallel calls": [user(), calls(ONE, TWO), result(), result(number=1), says()],
    "two calls in turn": [SYSTEM, user(), calls(ONE), result(), calls(TWO), result(), says()],
    "ends with a call": [user(), says(), user("and now?"), calls(ONE)],
    "words and a call": [user(), calls(ONE, text="I look."), result(), says()],
    "a thought": [user(), says(thought="easy")],
    "thoughts": [user(), says(thought="easy"), user("and now?"), says("Better.", thought="add")],
    "a thought and a call": [user(), calls(ONE, thought="look"), result(), says(thought="so")],
    "a call, then a question": [
        user(),
        calls(ONE, thought="look"),
        result(),
        says(),
        user(),
        says(),
    ],
    "no question": [says("Hello."), user(), says()],
    "two questions": [user(), user("Really?"), says()],
    "an empty answer": [user(), says(""), user("and now?"), says()],
    "white space": [user(" a \n"), says("  b \n\n"), user("\n\nc"), says(" d ")],
}
NO_TOOLS = ("a tool", "parallel calls", "two calls in turn", "ends with a call", "words and a call",
            "a thought and a call", "a call, then a question")  # fmt: skip
# What a template does not write, and says so itself or would leave out.
REFUSED = {
    **{name: set(NO_TOOLS) for name in ("llama 3", "gemma 2", "gemma 3", "phi 4")},
    "llama 3.1": {"parallel calls", "words and a call", "a thought and a call",
                  "a call, then a question"},
    "mistral": {"two calls in turn", "words and a call", "a thought and a call",
                "a call, then a question"},
    "gpt-oss": {"parallel calls"},
    "deepseek r1": {"words and a call", "a thought and a call", "a call, then a question"},
}  # fmt: skip
REFUSED["gemma 2"] |= {"system"}
REFUSED["gemma 3"] |= {"no question", "two questions"}


def conversation_of(turns, with_tools):
    """The turns as they are read; an empty answer cannot be trained on, so it is in the context."""
    rules = TurnRules(("assistant",), "completion", set())
    named = []
    for number, turn in enumerate(turns):
        changed = {}
        if "tool_calls" in turn:  # JSON text keeps null
            changed = {"tool_calls": json.dumps(turn["tool_calls"])}
        elif turn["content"] == "":
            changed = {"weight": 0}
        named.append((f"messages[{number}]", turn | changed))
    read = read_turns(named, context=0, rules=rules)
    return Conversation(read.messages, tools=tools_text("tools", TOOLS) if with_tools else "")


def as_family(name, turns):
    """The turns as this family's template wants them: written here, independently of the code."""
    turns = copy.deepcopy(turns)
    for turn in turns:
        thought = turn.pop("reasoning_content", None)
        if thought and name == "gpt-oss":
            turn["thinking"] = thought
        elif thought and name in ("qwen 3", "marked"):
            turn["reasoning_content"] = thought
        elif thought:
            turn["content"] = f"<think>\n{thought}\n</think>\n\n{turn['content']}"
        if "tool_calls" in turn and name == "deepseek r1":
            turn["content"] = None
            for call in turn["tool_calls"]:
                call["function"]["arguments"] = json.dumps(
                    call["function"]["arguments"], ensure_ascii=False
                )
    return turns


def rendered(name, turns, with_tools, **options):
    tools = {"tools": TOOLS} if with_tools else {}
    return family(name).apply_chat_template(
        as_family(name, turns), tokenize=False, strftime_now=DATE.strftime, **tools, **options
    )


def ids_of(name, text):
    return family(name).encode(text, add_special_tokens=False)


def examples_of(name, conversation):
    """The conversation of each example, its ids and its mask."""
    tok = family(name)
    special = special_tokens_of(tok)
    template = ChatTemplate(tok, special)
    parts = list(template.separate(conversation))[::-1]
    examples = SpanEncoder(tok, special).encode(map(template.spans, parts))
    return template, [(part, *examples[index]) for index, part in enumerate(parts)]


def is_served_as_written(name, turns, answer, with_tools):
    """Whether the template writes the same in front of an answer with and without it.

    Mistral's shows the system message only where a question is last, gpt-oss's drops the thought in
    front of a call once a final answer follows: such prompts count, and not the whole.
    """
    whole = rendered(name, turns[: answer + 1], with_tools)
    options = {"add_generation_prompt": True}
    return answer == 0 or whole.startswith(rendered(name, turns[:answer], with_tools, **options))


def starts_of(mask):
    return np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int)))) == 1).tolist()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ids_are_the_templates_and_prompts_are_a_servers(name, shape):
    turns, with_tools = SHAPES[shape], shape in NO_TOOLS
    conversation = conversation_of(turns, with_tools)
    if shape in REFUSED.get(name, ()):
        with pytest.raises(TemplateProblem):
            examples_of(name, conversation)
        return
    template, examples = examples_of(name, conversation)
    trained = []
    for part, tokens, mask in examples:
        count = len(part.messages)
        whole = ids_of(name, rendered(name, turns[:count], with_tools))
        ids = tokens.tolist()
        written = ids[:-1] if template.adds_eos(part) else ids
        here = [index for index, message in enumerate(part.messages) if message.in_loss]
        trained += here
        if name != "deepseek r1" and is_served_as_written(name, turns, here[-1], with_tools):
            assert written == whole[: len(written)]
        if name != "marked":
            starts = starts_of(mask)
            assert len(starts) == len(here)
            for start, index in zip(starts, here, strict=True):
                if index:  # nothing is asked before the first turn
                    options = {"add_generation_prompt": True}
                    prompt = rendered(name, turns[:index], with_tools, **options)
                    assert ids[:start] == ids_of(name, prompt)
        assert mask[-1]
    assert sorted(trained) == [
        index
        for index, turn in enumerate(turns)
        if turn["role"] == "assistant" and (turn["content"] or "tool_calls" in turn)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_that_of_the_templates_own_marks(shape):
    turns, with_tools = SHAPES[shape], shape in NO_TOOLS
    _, examples = examples_of("marked", conversation_of(turns, with_tools))
    ((_, ids, mask),) = examples
    expected = family("marked").apply_chat_template(
        as_family("marked", turns),
        tools=TOOLS if with_tools else None,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    flags = np.array(expected["assistant_masks"], bool)
    if shape == "an empty answer":
        return  # it is in the context by its weight
    assert ids.tolist() == expected["input_ids"][: len(ids)]
    assert mask.tolist() == flags[: len(ids)].tolist() and not flags[len(ids) :].any()


WORDS = st.text(st.sampled_from('ab 1\n\t"{}é'), min_size=1, max_size=12).map(lambda s: "x" + s)
ARGUMENTS = st.dictionaries(st.sampled_from("abc"), st.one_of(WORDS, st.integers(), st.none()))


@st.composite
def conversations(draw, name):
    thoughts = name in ("qwen 3", "marked", "gpt-oss")
    thought = st.one_of(st.none(), WORDS.map(str.strip)) if thoughts else st.none()
    has_system = name != "mistral" and draw(st.booleans())
    turns = [{"role": "system", "content": draw(WORDS)}] if has_system else []
    for number in range(draw(st.integers(1, 3))):
        turns.append(user(f"{number}{draw(WORDS)}"))  # Mistral's compares the questions
        for _ in range(draw(st.integers(0, 2))):
            most = 2 if name not in ("gpt-oss", "llama 3.1") else 1
            given_calls = draw(st.lists(ARGUMENTS, min_size=1, max_size=most))
            turns.append(calls(*given_calls, thought=draw(thought)))
            turns += [result(draw(WORDS), number) for number in range(len(given_calls))]
        turns.append(says(draw(WORDS), draw(thought)))
    return turns


@pytest.mark.parametrize(
    "name", ["llama 3.1", "qwen 2.5", "qwen 3", "marked", "mistral", "gpt-oss"]
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_conversations_are_trained_as_they_are_served(name, data):
    """Every answer is trained on once, behind its server's prompt, in the template's text."""
    turns = data.draw(conversations(name))
    conversation = conversation_of(turns, with_tools=True)
    template, examples = examples_of(name, conversation)
    tok = family(name)
    trained = []
    for part, tokens, mask in examples:
        whole = rendered(name, turns[: len(part.messages)], True)
        ids = tokens.tolist()
        written = tok.decode(ids[:-1] if template.adds_eos(part) else ids)
        served = tok.decode(ids_of(name, whole))
        here = [index for index, message in enumerate(part.messages) if message.in_loss]
        trained += here
        if name == "marked":
            assert served.startswith(written)
            continue
        if is_served_as_written(name, turns, here[-1], True):
            assert served.startswith(written)
        for start, index in zip(starts_of(mask), here, strict=True):
            prompt = rendered(name, turns[:index], True, add_generation_prompt=True)
            assert tok.decode(ids[:start]) == tok.decode(ids_of(name, prompt))
    assert sorted(trained) == [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]


def test_a_prompt_at_inference_has_the_tools():
    turns = SHAPES["a tool"]
    conversation = conversation_of(turns, with_tools=True)
    found = prompt_tokens(
        family("qwen 3"), "tokenizer", conversation.messages[:3], tools=conversation.tools
    )
    prompt = rendered("qwen 3", turns[:3], True, add_generation_prompt=True)
    assert found == ids_of("qwen 3", prompt)


def test_an_example_that_differs_is_counted_and_shown_with_its_row():
    """The template takes this question for a tool's result, and drops the thought after it."""
    tok = family("qwen 3")
    special = special_tokens_of(tok)
    good = conversation_of(SHAPES["a thought"], with_tools=False)
    odd = [user("<tool_response>"), says("b", thought="t"), user(), says("d", thought="u")]
    talks = [good, good, conversation_of(odd, with_tools=False)]
    found = compare(tok, special, talks[:2], str)
    assert (found.compared, found.unlike, found.first) == (2, 0, "")
    turned = [user(), says("b", thought="t"), user("<tool_response>"), says("d", thought="u")]
    talks[2] = conversation_of(turned, with_tools=False)
    found = compare(tok, special, talks, str)
    assert (found.compared, found.unlike) == (3, 1)
    assert found.first.startswith("2: ") and " here, " in found.first


def test_where_calls_would_be_lost_the_row_is_refused():
    conversation = conversation_of(SHAPES["a tool"], with_tools=True)
    template = ChatTemplate(family("phi 4"), special_tokens_of(family("phi 4")))
    with pytest.raises(TemplateProblem, match="leaves out tool calls"):
        template.spans(conversation)
    # DeepSeek's writes calls only without content, and reasoning only as content.
    conversation = conversation_of(SHAPES["a thought and a call"], with_tools=True)
    template = ChatTemplate(family("deepseek r1"), special_tokens_of(family("deepseek r1")))
    with pytest.raises(TemplateProblem, match=r"leaves out the reasoning.* that calls tools"):
        template.spans(conversation)


def test_nothing_is_to_be_said_of_a_template_that_is_followed():
    for name in ("qwen 2.5", "llama 3.1", "mistral"):
        tok = family(name)
        talk = conversation_of(SHAPES["a tool"], with_tools=True)
        assert template_notes(tok, special_tokens_of(tok), [talk]) == []
        template = ChatTemplate(tok, special_tokens_of(tok))
        encoder = SpanEncoder(tok, special_tokens_of(tok))
        ids, mask = encoder.encode([template.spans(talk)])[0]
        assert difference(template, tok, talk, ids, mask) is None


def with_template(name, template):
    """The tokenizer of a family, with another chat_template."""
    tok = copy.deepcopy(family(name))
    tok.chat_template = template
    return tok


DROPS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ '<think>' + m.reasoning_content + '</think>' if loop.last and"
    " m.reasoning_content else '' }}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_marked_answer_whose_thought_is_dropped_gets_another_example():
    """TRL's template for gpt-oss marks earlier answers, but leaves out their thoughts."""
    tok = with_template("marked", DROPS)
    special = special_tokens_of(tok)
    template = ChatTemplate(tok, special)
    whole = conversation_of(SHAPES["thoughts"], with_tools=False)
    examples = SpanEncoder(tok, special).encode(map(template.spans, template.separate(whole)))
    texts = [tok.decode(examples[number][0][examples[number][1]]) for number in range(2)]
    assert texts == [
        "<think>add</think>Better.<|im_end|>",
        "<think>easy</think>It is well.<|im_end|>",
    ]
    assert len(examples) == 2


ENDS_APART = DROPS.replace(" + '<|im_end|>' }}{% endgen", " }}{% endgen").replace(
    "{% endgeneration %}",
    "{% endgeneration %}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}",
)


@pytest.mark.parametrize("first", ["Hello.", ""])
def test_the_marked_end_of_an_answer_is_trained_as_the_answer_is(first):
    """TRL's template for Gemma marks an answer's end apart from its words."""
    tok = with_template("marked", ENDS_APART)
    special = special_tokens_of(tok)
    turns = [user(), says(first) | {"weight": 0}, user(), says()]
    spans = ChatTemplate(tok, special).spans(conversation_of(turns, with_tools=False))
    ids, mask = SpanEncoder(tok, special).encode([spans])[0]
    assert tok.decode(ids[mask]) == f"{says()['content']}<|im_end|>"


SPACES_BEFORE_CALLS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '  ' if m.tool_calls else '' }}"
    "{{ '<|im_start|>assistant\n' }}{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
    "{% endif %}{{ m.content + '<|im_end|>' }}{% else %}{{ m.role + m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_prompt_of_each_answer_is_compared_and_not_the_last_alone():
    tok = with_template("qwen 2.5", SPACES_BEFORE_CALLS)
    turns = [user(), calls(ONE), result(), says()]
    talk = conversation_of(turns, with_tools=True)
    (note,) = template_notes(tok, special_tokens_of(tok), [talk])
    assert note.startswith("the prompt is not what a server sends")


SECOND_CALL = (  # DeepSeek-V3's: only the first call of a conversation stands behind the prompt
    "{% set ns = namespace(first=true) %}{% for m in messages %}{% if m.tool_calls %}"
    "{{ '<|Assistant|>' if ns.first else '\n' }}{{ '<|call|>' + m.tool_calls[0].function.name +"
    " '</s>' }}{% set ns.first = false %}{% elif m.role == 'assistant' %}{{ m.content + '</s>' }}"
    "{% else %}{{ '<|User|>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role == 'user' %}{{ '<|Assistant|>' }}{% endif %}"
)


def test_a_call_that_does_not_follow_its_prompt_is_refused():
    """All turns from the first call on, a user's too, would be trained on."""
    tok = with_template("deepseek r1", SECOND_CALL)
    template = ChatTemplate(tok, special_tokens_of(tok))
    once = [user(), calls(ONE), result(), says()]
    assert template.spans(conversation_of(once, with_tools=True))
    with pytest.raises(TemplateProblem, match="after the prompt that a server sends"):
        template.spans(conversation_of([*once, user(), calls(ONE)], with_tools=True))


def test_spaces_that_decoding_removes_are_compared():
    """Llama 3's `clean_up_tokenization_spaces`: `a .` and `a.` are different tokens."""
    tok = copy.deepcopy(family("qwen 2.5"))
    tok.clean_up_tokenization_spaces = True
    template = ChatTemplate(tok, special_tokens_of(tok))
    encode = SpanEncoder(tok, special_tokens_of(tok)).encode
    spaced, plain = (
        conversation_of([user(), says(text)], with_tools=False) for text in ("a .", "a.")
    )
    ids, mask = encode([template.spans(spaced)])[0]
    assert difference(template, tok, spaced, ids, mask) is None
    (shown,) = shown_examples(encode([template.spans(spaced)]), tok, 1)
    assert [text for text, trained in shown.parts if trained] == ["a .<|im_end|>"]
    found = difference(template, tok, plain, ids, mask)
    assert found and "a . here" in found.replace("'", "").replace("<|im_end|>", "")


@pytest.mark.parametrize(("words", "kind"), [("It is well.\n", "content"), ("[x]", "completion")])
def test_an_answer_in_the_context_is_encoded_with_the_text_around_it(words, kind):
    """As in a server's prompt, where `.` and a line break may be one token (Qwen's are)."""
    template = ChatTemplate(family("qwen 3"), special_tokens_of(family("qwen 3")))
    turns = [user(), says(words, thought="easy"), user(), says("Better.", thought="add")]
    spans = template.spans(conversation_of(turns, with_tools=False))
    found = [span.kind for span in spans if span.text == words.rstrip()]
    assert found == [kind]
    assert [span.text for span in spans if span.trained and span.kind == "end"] == ["<|im_end|>"]
