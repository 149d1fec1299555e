"""prunekit makes a Hugging Face causal language model smaller and hands back an ordinary model folder.

The command line is `prunekit.cli`; the same run as a function is `prunekit.run.pipeline.prune(recipe, output)`.
`prunekit.load(folder)` is the model of any folder that prunekit wrote. Importing this package imports nothing else, so
that `prunekit --help` is quick.
"""

from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__version__ = "0.1.0"


def load(path: "str | PathLike[str]", **options: Any) -> "PreTrainedModel":
    """The transformers model of a local folder, in whatever layout it is; see `prunekit.model.loading`."""
    return import_module("prunekit.model.loading").load(path, **options)
