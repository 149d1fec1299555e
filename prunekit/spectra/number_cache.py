"""Numbers that took long to compute, kept from run to run: a safetensors file each, beside the cached token ids.

As with token ids, a cache never fails a run: a file that is damaged counts as absent, one that cannot be written is not
written, and files appear whole.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from prunekit.cache import folder, key, write_whole


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, with its dtype and shape."""
    content = tensor.contiguous().flatten().view(torch.uint8).numpy()
    name = f"{tensor.dtype} {tuple(tensor.shape)}"
    return hashlib.sha256(content.data).hexdigest() + hashlib.sha256(name.encode()).hexdigest()[:8]


def place(kind: str, **parts: object) -> Path:
    """The file of an entry, named by everything that decides its content."""
    return folder() / kind / f"{key(**parts)}.safetensors"


def read(path: Path) -> Tensor | None:
    """The numbers of an entry; None when there is no sound one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            numbers, seal = file.get_tensor("numbers"), (file.metadata() or {}).get("seal")
    except (OSError, SafetensorError):
        return None
    return numbers if seal == digest(numbers) else None


def write(path: Path, numbers: Tensor) -> None:
    """Write an entry whole or not at all."""
    from safetensors.torch import save

    write_whole(path, save({"numbers": numbers.contiguous()}, {"seal": digest(numbers)}))
