"""Versions of what computes and writes weights: a result made with others may differ."""

import torch
import transformers

from prunekit import __version__


def versions() -> dict[str, str]:
    """Versions that the bytes of a result may depend on."""
    return {"prunekit": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
