"""prunekit makes a Hugging Face causal language model smaller and hands back an ordinary model folder.

The command line is `prunekit.cli`; the same run as a function is `prunekit.pipeline.prune(recipe, output)`.
Importing this package imports nothing else, so that `prunekit --help` is quick.
"""

__version__ = "0.1.0"
