"""The Hub's client and its failures in one line each: what happened, what to do, no secret in it;
called from hub.push.

huggingface_hub retries what is worth it (5 times: 408, 429, 5xx and broken connections, while it
uploads); what still fails then comes here. Uploaded content is kept by the Hub under its hash, so
running the same command again sends only what is missing.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError
from intel_ft.hub.secrets import redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 300.0  # a commit of a large folder takes the Hub minutes
_LONGEST = 300  # characters of what a server says
AGAIN = "run the same command again: what was uploaded is not sent twice"


class _Redacted(logging.Filter):
    """Keeps signed URLs out of the client's warnings about retries."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), None), None
        return True


def connect() -> "HfApi":
    """The Hub's client, with a limit on how long a silent server is waited for (it has none)."""
    import httpx
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.logging import disable_propagation

    def client() -> httpx.Client:
        made = default_client_factory()
        made.timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        return made

    set_client_factory(client)
    disable_propagation()  # its warnings would come twice
    logging.getLogger("huggingface_hub.utils._http").addFilter(_Redacted())
    return HfApi(library_name="intel_ft")


def token() -> str | None:
    """The user's token from where huggingface_hub looks: HF_TOKEN, what `hf auth login` left."""
    from huggingface_hub import get_token

    return get_token()


def require_token() -> str:
    """The token. Raises EnvironmentProblem where there is none."""
    found = token()
    if found is None:
        raise EnvironmentProblem(
            "no token for the Hub: log in with `hf auth login`, or set HF_TOKEN in the environment"
        )
    return found


@contextmanager
def explained(doing: str, repo: str, secret: str | None) -> Iterator[None]:
    """Turn what the client raises while `doing` something to `repo` into one line of ours.

    The original is dropped, also from tracebacks: its text may hold signed URLs or echo `secret`.
    """
    try:
        yield
    except IntelFTError:
        raise
    except Exception as error:  # httpx's, the client's own, and hf_xet's are of no common class
        failure = _explain(error, doing, repo)
        line = redact(" ".join(str(failure).split()), secret)
        raise type(failure)(line) from None


def _explain(error: Exception, doing: str, repo: str) -> IntelFTError:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    host = urlsplit(constants.ENDPOINT).netloc
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return UserError(f"{repo}: the Hub refuses the card: {error}")
    cause = _root(error, (httpx.HTTPError, OfflineModeIsEnabled))
    if isinstance(cause, HfHubHTTPError):
        return _refused(cause, doing, repo)
    if isinstance(cause, OfflineModeIsEnabled):
        return EnvironmentProblem("HF_HUB_OFFLINE is set: unset it to publish")
    if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
        return EnvironmentProblem(
            f"{host} cannot be reached while {doing} ({cause}): check the network or proxy"
        )
    if isinstance(cause, httpx.HTTPError):
        silent = isinstance(cause, httpx.TimeoutException)
        what = "was silent for too long" if silent else f"broke the connection ({cause})"
        return IntelFTError(f"{host} {what} while {doing}: {AGAIN}")
    return IntelFTError(f"{repo}: {doing} failed ({_short(str(error))}): {AGAIN}")


def _refused(error: Any, doing: str, repo: str) -> IntelFTError:
    """The Hub answered, with an error."""
    status = error.response.status_code
    said = _short(error.server_message or "")
    answer = f"while {doing} ({status}{', ' if said else ''}{said})"
    kinds: dict[int, tuple[type[IntelFTError], str, str]] = {
        401: (
            EnvironmentProblem,
            "the Hub does not accept the token",
            "log in again with `hf auth login`, or set a valid HF_TOKEN",
        ),
        403: (
            EnvironmentProblem,
            "the token may not do this",
            "use one with write permission there, or another name",
        ),
        404: (
            UserError,
            "the Hub finds no such place",
            "check the name, and whether it was removed",
        ),
        409: (IntelFTError, "changed by somebody else", f"look at it, then {AGAIN}"),
        412: (IntelFTError, "changed by somebody else", f"look at it, then {AGAIN}"),
        429: (IntelFTError, "the Hub limits the rate", f"wait some minutes, then {AGAIN}"),
    }
    refused = (UserError, "the Hub refused", "see what it says")
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
