import pytest
from support.data_tokenizers import tokenizer

from intel_ft.errors import MissingPackage, UserError
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import choose_template, renderer

TURN = (Message("user", "Q", "C"), Message("assistant", "A"))
SYSTEM = (Message("system", "S"),)


def written(template, messages, kind="byte", system_prompt=None):
    tok = tokenizer(kind)
    spans = renderer(template, tok, special_tokens_of(tok), system_prompt)(Conversation(messages))
    return "".join(span.text for span in spans)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "llama2",
            "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ\n\nC [/INST] A</s><s>[INST] Q\n\nC [/INST] A</s>",
        ),
        (
            "alpaca",
            "<s>S\n\n### Instruction:\nQ\n\n### Input:\nC\n\n### Response:\nA</s>"
            "\n\n### Instruction:\nQ\n\n### Input:\nC\n\n### Response:\nA</s>",
        ),
        (
            "dolly",
            "<s>S\n\n### Instruction\nQ\n\n### Context\nC\n\n### Answer\nA</s>"
            "\n\n### Instruction\nQ\n\n### Context\nC\n\n### Answer\nA</s>",
        ),
        (
            "chatml",
            "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ\n\nC<|im_end|>\n"
            "<|im_start|>assistant\nA</s>\n<|im_start|>user\nQ\n\nC<|im_end|>\n"
            "<|im_start|>assistant\nA</s>",
        ),
        ("none", "<s>S\n\nQ\n\nCA</s>Q\n\nCA</s>"),
    ],
)
def test_built_in_templates(template, expected):
    assert written(template, SYSTEM + TURN + TURN) == expected
    assert written(template, TURN + TURN, system_prompt="S") == expected
    assert written(template, SYSTEM + TURN + TURN, system_prompt="other") == expected


def test_alpaca_opens_as_stanford_did():
    without = (Message("user", "Q"), TURN[1])
    assert written("alpaca", without).startswith(
        "<s>Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\nQ\n\n### Response:\nA"
    )
    assert written("alpaca", TURN).startswith(
        "<s>Below is an instruction that describes a task, paired with an input that provides"
        " further context. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nQ\n\n### Input:\nC\n\n### Response:\nA"
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Its end of turn is EOS: written once, behind the template's space.
        ("llama, prepend", "<s>[INST] Q\n\nC [/INST] A </s><s>[INST] Q\n\nC [/INST] A </s>"),
        # Another token ends turns: EOS comes at the end only.
        (
            "llama, first",
            "<s><|start|>user<|end|>\n\nQ\n\nC<|eot|><|start|>assistant<|end|>\n\nA<|eot|>"
            "<|start|>user<|end|>\n\nQ\n\nC<|eot|><|start|>assistant<|end|>\n\nA<|eot|></s>",
        ),
        (
            "byte, eos is im_end",
            "<|im_start|>user\nQ\n\nC<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nQ\n\nC<|im_end|>\n<|im_start|>assistant\nA<|im_end|>",
        ),
        # No token ends turns: EOS comes at the end only.
        (
            "byte, no bos, pad is eos",
            "user: Q\n\nC\nassistant: A\nuser: Q\n\nC\nassistant: A</s>",
        ),
    ],
)
def test_the_tokenizers_own_template(kind, expected):
    assert written("tokenizer", TURN + TURN, kind) == expected


def test_what_the_template_strips_is_stripped():
    messages = (Message("user", " Q "), Message("assistant", " A "))
    assert written("tokenizer", messages, "llama, prepend") == "<s>[INST] Q [/INST] A </s>"
    assert "user\n Q <|im_end|>" in written("tokenizer", messages, "byte")


def test_a_template_that_refuses_or_hides_a_message_is_one_line():
    with pytest.raises(UserError, match=r"rejects the roles system, user, assistant .no system"):
        written("tokenizer", SYSTEM + TURN, "byte, no bos, pad is eos")
    tok = tokenizer("byte")
    template = tok.chat_template
    try:
        tok.chat_template = "{{ messages[-1].content }}"
        with pytest.raises(UserError, match="does not contain each of the turns"):
            written("tokenizer", (*TURN, *TURN))
        tok.chat_template = "{{ messages[0].nothing.at_all }}"
        with pytest.raises(UserError, match="rejects the roles"):
            written("tokenizer", TURN)
        tok.chat_template = "{% for message in messages %}"
        with pytest.raises(UserError, match=r"chat_template is not a valid template .*endfor"):
            written("tokenizer", TURN)
    finally:
        tok.chat_template = template


def test_choice_of_a_template():
    assert choose_template("auto", "alpaca", True)[0] == "tokenizer"
    assert choose_template("auto", "alpaca", False)[0] == "alpaca"
    assert choose_template("auto", "dolly", False)[0] == "dolly"
    assert choose_template("auto", "messages", False)[0] == "chatml"
    assert choose_template("auto", "prompt_completion", False)[0] == "none"
    assert choose_template("auto", "question_answer", False)[0] == "alpaca"
    assert choose_template("auto", "pairs", False)[0] == "chatml"
    assert choose_template("auto", "judged", False)[0] == "chatml"
    assert choose_template("auto", "text", True)[0] == "none"
    assert choose_template("llama2", "alpaca", True) == ("llama2", "set in data.template")
    with pytest.raises(UserError, match="already contains its template"):
        choose_template("llama2", "text", True)
    with pytest.raises(UserError, match="the tokenizer has no chat_template"):
        choose_template("tokenizer", "alpaca", False)


def test_a_tokenizer_without_eos_is_refused():
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer("byte").backend_tokenizer)
    with pytest.raises(UserError, match="no EOS token"):
        special_tokens_of(bare)


def test_a_template_that_lacks_its_engine_is_not_blamed_on_the_tokenizer(monkeypatch):
    """Transformers raises an ImportError without a module's name where jinja2 is missing."""
    tok = tokenizer("byte")

    def apply_chat_template(*arguments, **options):
        raise ImportError("apply_chat_template requires jinja2 to be installed.")

    monkeypatch.setattr(tok, "apply_chat_template", apply_chat_template, raising=False)
    with pytest.raises(MissingPackage, match="jinja2"):
        renderer("tokenizer", tok, special_tokens_of(tok), None)(Conversation(TURN))
