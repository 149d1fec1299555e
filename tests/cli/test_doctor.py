import json

import pytest

from prunekit.errors import UnsupportedError
from prunekit.recipe import registry

from .conftest import Run


def broken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = registry.load

    def load(wanted: str, kind: registry.Kind = "method") -> type:
        if wanted == name:
            raise UnsupportedError(f"{name} does not work: ImportError")
        return real(wanted, kind)

    monkeypatch.setattr(registry, "load", load)


def test_the_machine_and_every_plug_in_are_shown(run: Run) -> None:
    result = run("doctor")
    found = json.loads(run("doctor", "--json").stdout)

    assert result.exit_code == 0, result.stderr
    for word in ("torch", "transformers", "cores", "free", "cache", "wanda", "works"):
        assert word in result.stdout
    assert found["memory"]["total"] >= found["memory"]["available"] > 0
    assert {plugin["name"] for plugin in found["plugins"]} == set(registry.names())
    assert found["libraries"]["torch"]


def test_a_third_partys_broken_plug_in_is_shown_and_does_no_harm(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    found = [
        replace(plugin, distribution="third") if plugin.name == "wanda" else plugin for plugin in registry.plugins()
    ]
    monkeypatch.setattr(registry, "plugins", lambda: found)
    broken(monkeypatch, "wanda")
    result = run("doctor")

    assert result.exit_code == 0
    assert "wanda does not work: ImportError" in result.stdout


def test_a_broken_plug_in_of_prunekit_itself_ends_with_3(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "wanda")
    result = run("doctor")

    assert result.exit_code == 3
    assert "wanda of prunekit itself does not work" in result.stderr
