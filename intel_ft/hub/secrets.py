"""A scan for credentials in what is published: it names file and line, never the secret."""

import re
from collections.abc import Iterable
from pathlib import Path

from intel_ft.errors import UserError
from intel_ft.hub.contents import File

# Formats as their issuers document them; minimum lengths exclude ordinary vocabulary entries.
_KINDS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "an AWS secret key": r"(?i:aws_secret_access_key)\W{1,6}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})\b",
    "an OpenAI key": r"\bsk-(?!ant-)(?:[a-z]+-)?[A-Za-z0-9_-]{32,}",
    "an Anthropic key": r"\bsk-ant-[A-Za-z0-9_-]{32,}",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a password in a URL": r"\bhttps?://[^\s/:@\"']+:[^\s/:@\"']+@",
}
_ANY = re.compile("|".join(f"({pattern})" for pattern in _KINDS.values()))
_WEIGHTS = (".safetensors", ".bin", ".model")
_SHOWN = 5


def refuse_secrets(files: Iterable[File], token: str | None) -> None:
    """Raise UserError if a text file holds what looks like a credential, or `token` itself."""
    places = [place for file in files for place in _places(file, token)]
    if places:
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        raise UserError(
            f"nothing was uploaded: credentials found: {', '.join(places[:_SHOWN])}{more}: remove "
            "them, and revoke any that someone else may have seen"
        )


def redact(text: str, token: str | None) -> str:
    """`text` with every credential, and the signed part of every URL, replaced by `***`."""
    if token:
        text = text.replace(token, "***")
    return _ANY.sub("***", re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1?***", text))


def _places(file: File, token: str | None) -> list[str]:
    if Path(file.path).suffix in _WEIGHTS:
        return []
    text = file.text()
    kinds = list(_KINDS)
    places = [(match.start(), kinds[(match.lastindex or 1) - 1]) for match in _ANY.finditer(text)]
    if token and (start := text.find(token)) >= 0:
        places.append((start, "your own token"))
    return [
        f"{kind} in {file.path} line {text.count(chr(10), 0, start) + 1}"
        for start, kind in sorted(places)
    ]
