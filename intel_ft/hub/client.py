"""The Hub's client, and its errors as one line each: what happened, what to do, no secrets.

During an upload huggingface_hub retries 408, 429, 5xx and broken connections five times; this
module explains what still fails. The Hub stores uploaded content under its hash, so running the
same command again sends only what is missing.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError, missing_package
from intel_ft.hub.secrets import redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 300.0  # committing a large folder takes the Hub minutes
_LONGEST = 300  # characters of a server's message
AGAIN = "run the same command again; content that was uploaded is not sent twice"


class _Redacted(logging.Filter):
    """Keeps signed URLs out of the client's warnings about retries."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), None), None
        return True


def connect() -> "HfApi":
    """The Hub's client with timeouts, of which it has none by default."""
    import httpx
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.logging import disable_propagation

    def client() -> httpx.Client:
        client = default_client_factory()
        client.timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        return client

    set_client_factory(client)
    disable_propagation()  # or its warnings are printed twice
    logging.getLogger("huggingface_hub.utils._http").addFilter(_Redacted())
    return HfApi(library_name="intel_ft")


def token() -> str | None:
    """The user's token as huggingface_hub finds it: HF_TOKEN, or what `hf auth login` stored."""
    from huggingface_hub import get_token

    return get_token()


def require_token() -> str:
    """The token. Raises EnvironmentProblem where there is none."""
    secret = token()
    if secret is None:
        raise EnvironmentProblem(
            "no Hugging Face token: log in with `hf auth login`, or set HF_TOKEN in the environment"
        )
    return secret


@contextmanager
def explained(doing: str, repo: str, secret: str | None) -> Iterator[None]:
    """Turn what the client raises while `doing` something with `repo` into a one-line error.

    The original is dropped, from tracebacks too: its text may hold signed URLs or echo `secret`.
    """
    try:
        yield
    except IntelFTError:
        raise
    except Exception as error:  # those of httpx, the client and hf_xet share no base class
        failure = _explain(error, doing, repo)
        line = redact(" ".join(str(failure).split()), secret)
        raise type(failure)(line) from None


def _explain(error: Exception, doing: str, repo: str) -> IntelFTError:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if missing := missing_package(error):
        return missing
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return UserError(f"{repo}: the Hub rejected the model card: {error}")
    cause = _root(error, (httpx.HTTPError, OfflineModeIsEnabled))
    if isinstance(cause, HfHubHTTPError):
        return _refused(cause, doing, repo)
    if isinstance(cause, OfflineModeIsEnabled):
        return EnvironmentProblem("HF_HUB_OFFLINE is set: unset it to upload")
    if isinstance(cause, httpx.HTTPError):
        return _broken(cause, doing, urlsplit(constants.ENDPOINT).netloc)
    return IntelFTError(f"{repo}: {doing} failed ({_short(str(error))}): {AGAIN}")


def _broken(error: Exception, doing: str, host: str) -> IntelFTError:
    """The error for a connection that failed, broke or stayed silent."""
    import httpx

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return EnvironmentProblem(
            f"{host} cannot be reached while {doing} ({error}): check the network or proxy"
        )
    silent = isinstance(error, httpx.TimeoutException)
    what = "did not answer in time" if silent else f"broke the connection ({error})"
    return IntelFTError(f"{host} {what} while {doing}: {AGAIN}")


def _refused(error: Any, doing: str, repo: str) -> IntelFTError:
    """The error for an HTTP error status."""
    status = error.response.status_code
    message = _short(error.server_message or "")
    answer = f"while {doing} ({status}{', ' if message else ''}{message})"
    kinds: dict[int, tuple[type[IntelFTError], str, str]] = {
        401: (
            EnvironmentProblem,
            "the Hub rejected the token",
            "log in again with `hf auth login`, or set a valid HF_TOKEN",
        ),
        403: (
            EnvironmentProblem,
            "the token does not permit this",
            "use a token with write permission there, or another repository name",
        ),
        404: (
            UserError,
            "the Hub has no such repository",
            "check the name, and whether it was deleted",
        ),
        409: (IntelFTError, "someone else changed it", f"review the change, then {AGAIN}"),
        412: (IntelFTError, "someone else changed it", f"review the change, then {AGAIN}"),
        429: (IntelFTError, "the Hub limits the request rate", f"wait some minutes, then {AGAIN}"),
    }
    refused = (UserError, "the Hub refused the request", "see its message")
    failed = (IntelFTError, "the Hub failed", AGAIN)
    kind, what, remedy = kinds.get(status, failed if status >= 500 else refused)
    return kind(f"{repo}: {what} {answer}: {remedy}")


def _root(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first of these kinds in a chain of causes; the client wraps some of its errors."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kinds):
        seen = seen.__cause__ or seen.__context__
    return seen


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
