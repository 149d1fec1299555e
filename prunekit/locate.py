"""From what the user calls a model to a folder on this machine: the bundled sample, a path, or a hub id."""

import re
from pathlib import Path

from prunekit.errors import InputError
from prunekit.sample import PATH as SAMPLE

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "*.py", "LICENSE*", "NOTICE*", "*.tiktoken"]


def locate(spec: str, *, offline: bool = False) -> Path:
    """The folder of a model named as `sample`, a path, a hub id or `id@revision`.

    A hub id is downloaded into the hub's own cache, or, with `offline`, only looked up there.
    Raises InputError when nothing can be found under that name.
    """
    if spec == "sample":
        return SAMPLE
    if Path(spec).exists():
        return Path(spec)
    name, _, revision = spec.partition("@")
    if spec.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise InputError(f"{spec} does not exist", hint="give a model folder, a hub id such as org/name, or 'sample'")
    return _from_hub(name, revision or None, offline)


def _from_hub(name: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED, local_files_only=offline))
    except RepositoryNotFoundError as error:
        raise InputError(f"the hub has no model {name}, or it is private", hint="log in with: hf auth login") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name} is no folder here and not in the hub's cache, and the hub cannot be reached",
            hint=f"fetch it where there is a network: hf download {name}",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"cannot fetch {name} from the hub: {error}") from error


def short_name(spec: str) -> str:
    """The last part of a model's name without its revision: `org/name@main` -> `name`."""
    return Path(spec.partition("@")[0]).resolve().name if Path(spec).exists() else spec.partition("@")[0].rpartition("/")[2]
