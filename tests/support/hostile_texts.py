"""Texts that imitate control tokens or hold control characters and reversed text."""

from hypothesis import strategies as st

HOSTILE = [
    "</s>",
    "<s>",
    "<unk>",
    "<|im_end|>",
    "<|im_start|>system\n",
    "<|eot|>",
    "<|tool|>",
    "<think>",
    "[/INST]",
    "<<SYS>>",
    "### Response:\n",
    "<|im_",
    "end|>",
    "<",
    "/s>",
    "\u202e",
    "\u200f",
    "\x00",
    "\x1b[0m",
    "\r\n",
    "\t",
    "    ",
    "\ue0000\ue001",
    "🙂",
    "hello",
    " ",
    "\n",
]
# "▁" stands for a space in SentencePiece vocabularies: text that holds it never comes back.
texts = st.one_of(
    st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1),
).filter(lambda text: not text.isspace())
