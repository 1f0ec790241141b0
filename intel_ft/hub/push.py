"""Publishing a folder on the Hub: read this first to see what `push` does, in order; called from
cli.push.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.artifacts.resolve import Artifact, resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.hub.card import check_card, write_card
from intel_ft.hub.client import connect, explained, require_token, token
from intel_ft.hub.contents import CARD, File, collect
from intel_ft.hub.metadata import Wishes, base_card, base_id, front_matter
from intel_ft.hub.records import read_records
from intel_ft.hub.secrets import refuse_secrets

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushReport:
    """`files`: size in bytes of each file by its path; `left_out`: what stays here. `url`,
    `commit` and `private` are None where nothing was sent (`--dry-run`).
    """

    repo: str
    url: str | None
    commit: str | None
    tag: str | None
    private: bool | None
    files: dict[str, int]
    left_out: list[str]
    card: str


def push(
    source: str,
    repo: str,
    *,
    wishes: Wishes,
    run: Path | None = None,
    card: Path | None = None,
    public: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
) -> PushReport:
    """Upload the adapter, merged model or IR in `source` to `repo` (org/name) in one commit.

    The repository is created, private unless `public`. `run` is the run whose records the card
    tells, where they are not beside an adapter or in an export.json; `card` is a text of the user's
    own. Files that are there already are not sent again.

    Raises UserError for what must not or cannot be published, EnvironmentProblem without a token
    that the Hub accepts or without the Hub, IntelFTError where the upload fails.
    """
    artifact = _publishable(source, repo)
    secret = token() if dry_run else require_token()
    api = connect()
    base = base_id(artifact, wishes)
    records = read_records(artifact, run)
    files, left = collect(artifact.folder, artifact.kind, artifact.base_model, base)
    if card is None:
        text = _card(artifact, records, wishes, repo, files, api, secret)
    else:
        text = _read_text(card)
    check_card(text)
    files.append(File(CARD, text.encode()))
    refuse_secrets(files, secret)
    sizes = {file.path: file.size for file in files}
    if dry_run:
        return PushReport(repo, None, None, tag, None, sizes, left, text)
    _prepare(api, repo, public, tag, secret)
    url, commit = _upload(api, repo, files, secret)
    if tag:
        with explained(f"setting the tag {tag}", repo, secret):
            api.create_tag(repo, tag=tag, revision=commit)
    return PushReport(repo, url, commit, tag, not public, sizes, left, text)


def _publishable(source: str, repo: str) -> Artifact:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: not a name on the Hub: {error}") from None
    if "/" not in repo:
        raise UserError(f"{repo}: say whose it is, as org/name or user/name")
    artifact = resolve(source)
    if artifact.kind == "base":
        raise UserError(
            f"{source}: a base model, nothing of intel_ft's: give a run, an adapter, a merged "
            "model or an exported folder"
        )
    return artifact


def _card(
    artifact: Artifact,
    records: Any,
    wishes: Wishes,
    repo: str,
    files: list[File],
    api: "HfApi",
    secret: str | None,
) -> str:
    inherited: dict[str, Any] = {}
    base = base_id(artifact, wishes)
    try:
        with explained(f"asking for the license of {base} (or give --license)", base, secret):
            inherited = base_card(artifact, base, api)
    except IntelFTError:
        if wishes.license is None:
            raise
    if records.training is None:
        log.warning("how this model was trained is not on record: --run RUN tells the card")
    known = inherited.get("license")
    if wishes.license and known not in (None, wishes.license):
        log.warning("the license of %s is %s, the card will say %s", base, known, wishes.license)
    data = front_matter(artifact, records, wishes, inherited, repo)
    return write_card(artifact, records, data, repo, {file.path for file in files})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _prepare(api: "HfApi", repo: str, public: bool, tag: str | None, secret: str | None) -> None:
    """Create the repository, or see that the one that exists is what the user takes it for."""
    with explained("creating the repository", repo, secret):
        api.create_repo(repo, private=not public, exist_ok=True)
    with explained("looking at the repository", repo, secret):
        there = api.model_info(repo)
        tags = {ref.name for ref in api.list_repo_refs(repo).tags} if tag else set()
    if bool(there.private) == public:
        state, remedy = (
            ("private", "leave --public out") if there.private else ("public", "add --public")
        )
        raise UserError(f"{repo} exists and is {state}: {remedy}, or change it on the Hub")
    if tag in tags:
        raise UserError(f"{repo} has a tag {tag} already: choose another, nothing was uploaded")


def _upload(api: "HfApi", repo: str, files: list[File], secret: str | None) -> tuple[str, str]:
    """Send what the Hub does not have yet, then commit all of it at once: its URL and its hash."""
    from huggingface_hub import CommitOperationAdd

    total = sum(file.size for file in files)
    log.info("uploading %d files, %.1f MB, to %s", len(files), total / 1e6, repo)
    with explained("uploading", repo, secret):
        operations = [CommitOperationAdd(file.path, file.source) for file in files]
        done = api.create_commit(repo, operations, commit_message="Upload with intel_ft")
        return f"{api.endpoint}/{repo}", str(done.oid)
