import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prunekit.errors import UnsupportedError, UsageError
from prunekit.recipe import registry

METHOD = '''"""Module line."""

from typing import ClassVar

from prunekit.contract import Context, Method
from prunekit.plan import PrunePlan


class Rival(Method):
    """Prune by rivalry."""

    name: ClassVar[str] = "{name}"
    paper: ClassVar[str] = "Nobody 2026, " "arXiv:0000.00000"

    def plan(self, ctx: Context) -> PrunePlan:
        raise NotImplementedError

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        raise NotImplementedError
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("third", "rival = third.rival:Rival", source)` puts a distribution on the path, as pip leaves it."""

    def put(package: str, entry: str, source: str | None, group: str = "prunekit.methods") -> None:
        information = tmp_path / f"{package}-1.5.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (information / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('a parent that must not be imported to list')\n")
        if source is not None:
            (folder / "rival.py").write_text(source)
        for name in (package, f"{package}.rival"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.syspath_prepend(str(tmp_path))
    return put


def importable(tmp_path: Path, package: str) -> None:
    (tmp_path / package / "__init__.py").write_text("")


def only(name: str) -> registry.Plugin:
    [plugin] = [plugin for plugin in registry.plugins() if plugin.name == name]
    return plugin


def test_the_methods_that_come_along_are_listed_with_what_their_source_says() -> None:
    wanda = registry.find("wanda")

    assert wanda.built_in and wanda.problem is None
    assert "arXiv:2306.11695" in wanda.paper
    assert wanda.summary.endswith(".")
    assert {"magnitude", "sparsegpt", "wanda"} <= set(registry.names("method"))
    assert registry.names("allocator") == sorted(registry.names("allocator"))


def test_every_plug_in_that_comes_along_loads() -> None:
    for plugin in registry.plugins():
        if plugin.built_in:
            assert registry.load(plugin.name, plugin.kind).name == plugin.name


def test_a_third_party_is_described_without_being_imported(install: Install) -> None:
    install("third", "rival = third.rival:Rival", METHOD.format(name="rival"))
    rival = only("rival")

    assert (rival.summary, rival.paper) == ("Prune by rivalry.", "Nobody 2026, arXiv:0000.00000")
    assert (rival.distribution, rival.version, rival.problem) == ("third", "1.5", None)
    assert "third" not in sys.modules


def test_a_third_party_loads(install: Install, tmp_path: Path) -> None:
    install("third", "rival = third.rival:Rival", METHOD.format(name="rival"))
    importable(tmp_path, "third")

    assert registry.load("rival").__name__ == "Rival"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "no source file for the module broken.rival"),
        ("def (", "invalid syntax"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("Rival = 5", "not a subclass of prunekit.contract.Method"),
        ("class Other: pass", "AttributeError"),
        (METHOD.format(name="another"), "calls itself 'another'"),
    ],
)
def test_a_broken_plug_in_is_named_with_the_reason_and_harms_no_other(
    install: Install, tmp_path: Path, source: str | None, said: str
) -> None:
    install("broken", "rival = broken.rival:Rival", source)
    importable(tmp_path, "broken")

    with pytest.raises(UnsupportedError, match=r"rival of broken 1\.5 does not work") as caught:
        registry.load("rival")
    listed = only("rival").problem or caught.value.message
    assert said in listed or said in caught.value.message
    assert registry.load("wanda").name == "wanda"


def test_a_third_party_cannot_take_the_name_of_a_method_that_comes_along(install: Install) -> None:
    install("thief", "wanda = thief.rival:Rival", METHOD.format(name="wanda"))

    assert registry.find("wanda").built_in
    [rival] = [plugin for plugin in registry.plugins() if plugin.distribution == "thief"]
    assert rival.problem == "the name is taken by prunekit"


def test_an_allocator_is_found_among_allocators_only(install: Install) -> None:
    install("third", "fair = third.rival:Rival", METHOD.format(name="fair"), group="prunekit.allocators")

    assert registry.is_allocator("fair")
    assert not registry.is_allocator("wanda")
    assert only("fair").kind == "allocator"
    with pytest.raises(UsageError, match="no method is called 'fair'"):
        registry.find("fair", "method")


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="'wandda'") as caught:
        registry.find("wandda")
    assert caught.value.hint == "did you mean wanda?"
    with pytest.raises(UsageError) as caught:
        registry.load("zzz", "allocator")
    assert caught.value.hint == "prunekit methods"
