"""`prunekit push`: publish a model folder on the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.models import read_model
from prunekit.cli.screen import table
from prunekit.errors import InputError
from prunekit.formatting import megabytes

if TYPE_CHECKING:
    from prunekit.export.push import Upload

EXAMPLES = """
prunekit push sample-shortgpt-25 you/sample-small --dry-run
prunekit push sample-shortgpt-25 you/sample-small --private
"""
Folder = Annotated[str, typer.Argument(metavar="OUT", help="Model folder, or - to read its path from standard input.")]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="Repository on the hub, as owner/name; made if it is new.")]
Private = Annotated[bool, options.option(options.EXPORT, None, "Make the new repository private.", "--private")]
DryRun = Annotated[
    bool, options.option(options.EXPORT, None, "Show what would be uploaded, and upload nothing.", "--dry-run")
]
Force = Annotated[
    bool, options.option(options.EXPORT, None, "Put the model over one that prunekit did not write.", "--force")
]


@command()
def push(
    run: Run, folder: Folder, repo: Repo, private: Private = False, dry_run: DryRun = False, force: Force = False
) -> None:
    """Upload a model folder to the hub, its card and manifest with it.

    Shows what is uploaded before it is; --dry-run stops there, and needs no network. The token is the one of
    `hf auth login`, or HF_TOKEN, and is never shown. Prints the address of the model.
    """
    from prunekit.export import push as pushing

    place = Path(read_model(folder))
    if not place.is_dir():
        raise InputError(f"{place} is not a folder", hint="give the folder that prunekit prune wrote")
    upload = pushing.prepare(place, repo, private=private)
    _show(run, upload, dry_run)
    if not dry_run:
        upload = pushing.push(place, upload, force=force)
    run.screen.result(upload.model_dump(mode="json"), *([upload.url] if upload.url else []))


def _show(run: Run, upload: "Upload", dry_run: bool) -> None:
    """What goes where."""
    rows = [(file.name, megabytes(file.bytes)) for file in upload.files]
    total = megabytes(sum(file.bytes for file in upload.files))
    run.screen.show(table("file", "size", rows=[*rows, ("in all", total)], right="size"))
    for name in upload.left_out:
        run.screen.say(f"note: {name} is not part of a model and is not uploaded")
    for note in upload.notes:
        run.screen.say(f"note: {note}")
    if upload.private:
        run.screen.say(f"{upload.repo} will be private if it is new")
    run.screen.say("nothing is uploaded: --dry-run" if dry_run else f"uploading to {upload.repo}")
