"""Versions of what computes and writes weights: a result made with others may differ."""

from importlib.metadata import version

from prunekit import __version__

LIBRARIES = ("torch", "transformers", "safetensors")


def libraries() -> dict[str, str]:
    """Versions of the libraries that compute and write weights, as a manifest records them beside prunekit's own."""
    return {name: version(name) for name in LIBRARIES}


def versions() -> dict[str, str]:
    """All versions that the bytes of a result may depend on."""
    return {"prunekit": __version__, **libraries()}
