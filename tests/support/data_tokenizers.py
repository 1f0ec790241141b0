"""Tokenizers of every kind that matters to data/, trained on a few lines; used by test_data_*."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Prepend, Replace, Sequence
from transformers import PreTrainedTokenizerFast

LINES = [
    "Below is an instruction that describes a task. Write a response.",
    "### Instruction:\nHow are you?\n\n### Response:\nI am well, thank you. def f(x): return x",
    "[INST] <<SYS>> hello <</SYS>> [/INST] <|im_start|>user\nassistant<|im_end|>",
] * 4

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content +"
    " '\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') +"
    " m.content.strip() + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>\n\n' +"
    " m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
NO_SYSTEM_NO_END = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|eot|>"]


def _wrap(backend, template, **more):
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **more})
    tokenizer.chat_template = template
    return tokenizer


def _adds_bos(backend):
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


def _byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    # As GPT-NeoX, Hermes and Qwen: runs of spaces, a control token and a tag declared ordinary.
    backend.add_tokens(
        [
            AddedToken("    ", normalized=False),
            AddedToken("<|tool|>", normalized=False),
            AddedToken("<think>", normalized=False),
        ]
    )
    return backend


def _sentencepiece(prefix):
    """As Llama 2: bytes as a fallback, "▁" for a space, one put in front."""
    letters = sorted(set("".join(LINES)) - {" ", "\n"})
    words = sorted({f"▁{word}" for word in " ".join(LINES).split() if word.isalpha()})
    vocab = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                merges.append((word[: end - 1], word[end - 1]))
                vocab.append(word[:end])
    ids = {token: index for index, token in enumerate(vocab)}
    backend = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.add_special_tokens(SPECIALS)
    if prefix == "prepend":
        backend.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def _unigram():
    """Its own vocabulary holds the control tokens, and would find them without any help."""
    letters = sorted({character for line in LINES for character in line} - {" ", "\n"})
    pieces = [(token, 0.0) for token in SPECIALS]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [("▁", -2.0), *((letter, -5.0) for letter in letters)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.add_special_tokens(SPECIALS)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


@cache
def tokenizer(kind):
    """One of KINDS."""
    match kind:
        case "byte":
            return _wrap(_adds_bos(_byte_level()), CHATML)
        case "byte, no bos, pad is eos":
            return _wrap(_byte_level(), NO_SYSTEM_NO_END, bos_token=None, pad_token="</s>")
        case "byte, eos is im_end":
            return _wrap(_byte_level(), CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
        case "byte, prefix space":
            backend = _byte_level()
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
            return _wrap(backend, LLAMA3)
        case "llama, prepend":
            return _wrap(_adds_bos(_sentencepiece("prepend")), LLAMA2)
        case "llama, first":
            return _wrap(_adds_bos(_sentencepiece("first")), LLAMA3)
        case "unigram":
            return _wrap(_adds_bos(_unigram()), LLAMA2)


KINDS = [
    "byte",
    "byte, no bos, pad is eos",
    "byte, eos is im_end",
    "byte, prefix space",
    "llama, prepend",
    "llama, first",
    "unigram",
]
TEMPLATES = ["llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"]
