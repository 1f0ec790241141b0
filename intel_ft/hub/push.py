"""What `push` does, in order: collect files, write the card, scan for secrets, upload."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.artifacts.resolve import Artifact, resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.hub.card import check_card, write_card
from intel_ft.hub.client import connect, explained, require_token, token
from intel_ft.hub.contents import CARD, File, collect
from intel_ft.hub.metadata import CardOptions, base_card, base_id, front_matter
from intel_ft.hub.records import read_records
from intel_ft.hub.secrets import refuse_secrets
from intel_ft.plurals import count_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushReport:
    """What was published, or would be.

    `files` maps each path to its size in bytes; `left_out` are the paths that are not published.
    `url`, `commit` and `private` are None where nothing was sent (`--dry-run`).
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
    card_options: CardOptions,
    run: Path | None = None,
    card: Path | None = None,
    public: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
) -> PushReport:
    """Upload the adapter, merged model or IR in `source` to `repo` (org/name) in one commit.

    The repository is created, private unless `public`. `run` is the run whose records the card
    shows, where they are neither beside an adapter nor in an export.json; `card` is a file that
    replaces the generated card. Files that the repository already has are not sent again.

    Raises UserError for what must not or cannot be published, EnvironmentProblem where the Hub
    cannot be reached or there is no valid token, IntelFTError where the upload fails.
    """
    artifact = _publishable(source, repo)
    secret = token() if dry_run else require_token()
    api = connect()
    base = base_id(artifact, card_options)
    records = read_records(artifact, run)
    files, left_out = collect(artifact.folder, artifact.kind, artifact.base_model, base)
    if card is None:
        text = _card(artifact, records, card_options, repo, files, api, secret)
    else:
        text = _read_text(card)
    check_card(text)
    files.append(File(CARD, text.encode()))
    refuse_secrets(files, secret)
    sizes = {file.path: file.size for file in files}
    if dry_run:
        return PushReport(repo, None, None, tag, None, sizes, left_out, text)
    _prepare(api, repo, public, tag, secret)
    url, commit = _upload(api, repo, files, secret)
    if tag:
        with explained(f"setting the tag {tag}", repo, secret):
            api.create_tag(repo, tag=tag, revision=commit)
    return PushReport(repo, url, commit, tag, not public, sizes, left_out, text)


def _publishable(source: str, repo: str) -> Artifact:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: not a valid repository name: {error}") from None
    if "/" not in repo:
        raise UserError(f"{repo}: include the owner: org/name")
    artifact = resolve(source)
    if artifact.kind == "base":
        raise UserError(
            f"{source}: this is a base model, not a result of intel_ft: give a run, an adapter, a "
            "merged model or an exported folder"
        )
    if artifact.is_reward_model:
        raise UserError(
            f"{source}: the card that push writes describes a language model, and this is a reward"
            " model: upload its folder with `hf upload`"
        )
    return artifact


def _card(
    artifact: Artifact,
    records: Any,
    card_options: CardOptions,
    repo: str,
    files: list[File],
    api: "HfApi",
    secret: str | None,
) -> str:
    inherited: dict[str, Any] = {}
    base = base_id(artifact, card_options)
    try:
        with explained(f"reading the license of {base} (or set --license)", base, secret):
            inherited = base_card(artifact, base, api)
    except IntelFTError:
        if card_options.license is None:
            raise
    if records.training is None:
        logger.warning("no record of how this model was trained: add it to the card with --run RUN")
    base_license = inherited.get("license")
    if card_options.license and base_license not in (None, card_options.license):
        logger.warning(
            "the license of %s is %s, but the card will state %s",
            base,
            base_license,
            card_options.license,
        )
    data = front_matter(artifact, records, card_options, inherited, repo)
    return write_card(artifact, records, data, repo, {file.path for file in files})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text ({error})") from None


def _prepare(api: "HfApi", repo: str, public: bool, tag: str | None, secret: str | None) -> None:
    """Create the repository, or check that an existing one has this visibility and no such tag."""
    with explained("creating the repository", repo, secret):
        api.create_repo(repo, private=not public, exist_ok=True)
    with explained("reading the repository's settings", repo, secret):
        info = api.model_info(repo)
        tags = {ref.name for ref in api.list_repo_refs(repo).tags} if tag else set()
    if bool(info.private) == public:
        state, remedy = ("private", "omit --public") if info.private else ("public", "add --public")
        raise UserError(
            f"{repo} exists and is {state}: {remedy}, or change its visibility on the Hub"
        )
    if tag in tags:
        raise UserError(f"{repo} already has a tag {tag}: choose another; nothing was uploaded")


def _upload(api: "HfApi", repo: str, files: list[File], secret: str | None) -> tuple[str, str]:
    """Send what the Hub does not have, commit all of it at once; return the URL and commit hash."""
    from huggingface_hub import CommitOperationAdd

    total = sum(file.size for file in files)
    logger.info("uploading %s, %.1f MB, to %s", count_of(len(files), "file"), total / 1e6, repo)
    with explained("uploading", repo, secret):
        operations = [CommitOperationAdd(file.path, file.source) for file in files]
        commit = api.create_commit(repo, operations, commit_message="Upload with intel_ft")
        return f"{api.endpoint}/{repo}", str(commit.oid)
