"""From what the user calls a model to a folder on this machine: the bundled sample, a path, or a hub id."""

import re
from pathlib import Path

from prunekit.errors import InputError, UnsupportedError
from prunekit.model.checkpoint import conversion_hint
from prunekit.sample import PATH as SAMPLE

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WANTED = [
    *("*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py"),
    *("*.md", "LICENSE*", "NOTICE*"),
]
UNWANTED = ["*/*", "consolidated*", "*.fp16.*", "*.bf16.*"]  # the same weights for other programs


def is_local(spec: str) -> bool:
    """Whether a model is on this machine under that name, so that finding it takes no network."""
    return spec == "sample" or (spec != "" and Path(spec).exists())


def locate(spec: str, *, offline: bool = False) -> Path:
    """The folder of a model named as `sample`, a path, a hub id or `id@revision`.

    A hub id is downloaded into the hub's own cache, or, with `offline`, only looked up there.
    Raises InputError when nothing can be found under that name, UnsupportedError when the hub has no safetensors of it.
    """
    if is_local(spec):
        return SAMPLE if spec == "sample" else Path(spec)
    name, _, revision = spec.partition("@")
    if spec.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise InputError(
            f"{spec or 'an empty name'} does not exist",
            hint="give a model folder, a hub id such as org/name, or 'sample'",
        )
    folder = _snapshot(name, revision or None, offline)
    if not any(folder.glob("*.safetensors")):
        raise _without_weights(name, offline)
    return folder


def short_name(spec: str) -> str:
    """The last part of a model's name without its revision: `org/name@main` -> `name`."""
    return Path(spec).resolve().name if Path(spec).exists() else spec.partition("@")[0].rpartition("/")[2]


def _snapshot(name: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                local_files_only=offline,
            )
        )
    except RepositoryNotFoundError as error:
        raise InputError(f"the hub has no model {name}, or it is private", hint="log in with: hf auth login") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name} is not a folder here and not in the hub's cache, and the hub cannot be reached",
            hint=f"fetch it where there is a network: hf download {name}",
        ) from error
    except Exception as error:  # the hub's client lets the errors of its HTTP library through
        raise InputError(f"cannot fetch {name} from the hub: {error}") from error


def _without_weights(name: str, offline: bool) -> InputError | UnsupportedError:
    if offline:
        return InputError(f"the hub's cache holds {name} without its weights", hint=f"hf download {name}")
    return UnsupportedError(
        f"{name} has no safetensors on the hub, and prunekit never opens pickles",
        hint=conversion_hint(name, f"{short_name(name)}-safetensors"),
    )
