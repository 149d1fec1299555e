"""The command line, the only part of prunekit that prints: one file per command, put together by `app`.

No file here imports torch, transformers or pydantic at its top, so that `prunekit --help` is quick.
"""


def main() -> None:
    """Run the command line on this process's arguments, and leave with its exit code."""
    from prunekit.cli.app import app

    app()
