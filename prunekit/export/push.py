"""Publish a model folder on the hub: what will be uploaded is listed before anything is, and only files of a model are.

The token is the one that `hf auth login` keeps, or HF_TOKEN; it is given only to huggingface_hub, and removed from
whatever goes wrong there.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from pydantic import Field

from prunekit.errors import InputError, UsageError
from prunekit.export.card import CARD, LICENCES, licence
from prunekit.export.manifest import MANIFEST, Manifest
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.hub import WANTED
from prunekit.plan import Frozen

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OURS = {CARD, ".gitattributes"}  # what a repository may hold and still count as empty
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PLACE = "FOLDER"  # in the card, where the code that loads the model names it
SECRET = "***"


class File(Frozen):
    """One file that is uploaded."""

    name: str
    bytes: int


class Upload(Frozen):
    """What is, or would be, uploaded."""

    schema_version: Literal[1] = 1
    repo: str
    private: bool
    dry_run: bool = Field(default=True, description="Whether nothing was uploaded.")
    files: tuple[File, ...]
    left_out: tuple[str, ...] = Field(description="What lies in the folder and is not part of a model.")
    notes: tuple[str, ...] = ()
    url: str | None = Field(default=None, description="Where it is now; null for a dry run.")
    commit: str | None = None


def prepare(folder: Path, repo: str, *, private: bool = False) -> Upload:
    """What would be uploaded, found out without the network.

    Raises InputError for a folder that prunekit did not write or that is damaged, UsageError for a malformed name.
    """
    if not REPO.fullmatch(repo) or ".." in repo:
        raise UsageError(
            f"{repo!r} is not the name of a repository; expected owner/name",
            hint=f"prunekit push {folder} you/{folder.name}",
        )
    Manifest.read(folder)
    Checkpoint.open(folder)
    kinds = (*WANTED, *LICENCES, "NOTICE*", MANIFEST, CARD)
    found = sorted(folder.iterdir())
    ours = [path for path in found if path.is_file() and any(fnmatch(path.name, kind) for kind in kinds)]
    notes = [] if licence(folder) else [f"{CARD} names no licence: others may not know whether they can use the model"]
    return Upload(
        repo=repo,
        private=private,
        files=tuple(File(name=path.name, bytes=path.stat().st_size) for path in ours),
        left_out=tuple(path.name for path in found if path not in ours),
        notes=tuple(notes),
    )


def push(folder: Path, upload: Upload, *, force: bool = False) -> Upload:
    """Create the repository if there is none, and upload the files in one commit; weights that were there are removed.

    Raises UsageError where the repository holds something else or is public although `private` was asked for, and
    InputError for whatever the hub refuses.
    """
    token = get_token()
    if token is None:
        raise InputError("nobody is logged in on the hub here", hint="hf auth login, or set HF_TOKEN")
    with _without_secrets(token, upload.repo):
        api = HfApi(token=token)
        there = _look(api, upload, force)
        if there is None:
            api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        done = api.create_commit(
            upload.repo, list(_operations(folder, upload, there or ())), commit_message=_message(folder)
        )
        return upload.model_copy(update={"url": f"{api.endpoint}/{upload.repo}", "commit": done.oid, "dry_run": False})


def _look(api: HfApi, upload: Upload, force: bool) -> list[str] | None:
    """The names of the files in the repository; None when there is no repository."""
    try:
        found: Any = api.repo_info(upload.repo)
    except RepositoryNotFoundError:
        return None
    if upload.private and not found.private:
        raise UsageError(
            f"{upload.repo} exists and is public, which --private does not change",
            hint="make it private on the hub first, or choose another name",
        )
    names = [sibling.rfilename for sibling in found.siblings or ()]
    if set(names) - OURS and MANIFEST not in names and not force:
        raise UsageError(
            f"{upload.repo} holds something that prunekit did not write: {sorted(set(names) - OURS)[0]}",
            hint="choose another name, or add --force to put this model over it",
        )
    return names


def _operations(
    folder: Path, upload: Upload, there: Sequence[str]
) -> Iterator[CommitOperationAdd | CommitOperationDelete]:
    """Every file, the card with the repository's name in it; shards of an older upload are not part of this model."""
    names = {file.name for file in upload.files}
    for name in sorted(names):
        yield CommitOperationAdd(name, _card(folder, upload.repo) if name == CARD else folder / name)
    for name in there:
        if name not in names and any(fnmatch(name, kind) for kind in WEIGHTS):
            yield CommitOperationDelete(name)


def _card(folder: Path, repo: str) -> bytes:
    """The card as it is read on the hub, where the folder has a name."""
    text = (folder / CARD).read_text(encoding="utf-8")
    text = text.replace(f'from_pretrained("{PLACE}"', f'from_pretrained("{repo}"')
    return text.replace(f"{PLACE} is this folder, or its id on the hub. ", "").encode()


def _message(folder: Path) -> str:
    found = Manifest.read(folder)
    return f"{found.source.name.rpartition('/')[2]}, pruned with {found.plan.method} by prunekit {found.prunekit}"


@contextmanager
def _without_secrets(token: str, repo: str) -> Iterator[None]:
    """Errors of the hub's client as prunekit's, without the token, and without the exception that may hold it."""
    try:
        yield
    except (UsageError, InputError):
        raise
    except Exception as error:  # its HTTP library has errors of its own
        said = " ".join(str(error).split()).replace(token, SECRET)
        code = getattr(getattr(error, "response", None), "status_code", None)
        hint = "is the token one that may write? hf auth login" if code in (401, 403) else None
        problem = InputError(f"the hub did not take {repo}: {said[:400] or type(error).__name__}", hint=hint)
    else:
        return
    raise problem
