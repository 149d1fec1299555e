"""Plug-ins by name: what is installed, read from entry points and source files, and the classes behind names.

Listing reads each plug-in's source with `ast` and imports nothing, so that `prunekit methods` is quick and a
plug-in that cannot be imported affects no other. Only `load` imports, and only the plug-in that was asked for.
"""

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from prunekit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from prunekit.contract import Allocator, Method, Recovery

Kind = Literal["method", "allocator", "recovery"]
GROUPS: dict[Kind, str] = {
    "method": "prunekit.methods",
    "allocator": "prunekit.allocators",
    "recovery": "prunekit.recoveries",
}
ORDER = tuple(GROUPS)
BUILT_IN = "prunekit"


@dataclass(frozen=True)
class Plugin:
    """One entry point and what its source says of itself; `problem` says why it cannot be used."""

    name: str
    kind: Kind
    summary: str
    paper: str
    distribution: str
    version: str
    entry: EntryPoint = field(repr=False)
    needs_ratio: bool = True
    problem: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether it comes with prunekit itself."""
        return self.distribution == BUILT_IN


def plugins() -> list[Plugin]:
    """All installed plug-ins, methods first, each kind by name; none is imported."""
    return _described(found for kind in GROUPS for found in _of_kind(kind))


def _of_kind(kind: Kind) -> list[tuple[EntryPoint, Kind]]:
    return [(entry, kind) for entry in _entries(GROUPS[kind])]


def _described(entries: Iterable[tuple[EntryPoint, Kind]]) -> list[Plugin]:
    found = [_describe(entry, kind) for entry, kind in entries]
    return list(_without_rivals(sorted(found, key=lambda plugin: (ORDER.index(plugin.kind), plugin.name))))


def names(kind: Kind | None = None) -> list[str]:
    """Names of the plug-ins of one kind, or of methods and allocators; for completion and suggestions."""
    groups = [GROUPS["method"], GROUPS["allocator"]] if kind is None else [GROUPS[kind]]
    return sorted({entry.name for group in groups for entry in entry_points(group=group)})


def is_allocator(name: str) -> bool:
    """Whether a name belongs to an allocator and to no method."""
    return name in names("allocator") and name not in names("method")


def find(name: str, kind: Kind | None = None) -> Plugin:
    """The plug-in of that name; raises UsageError that offers the nearest name when there is none."""
    kinds = tuple(GROUPS) if kind is None else (kind,)
    if called := [found for each in kinds for found in _of_kind(each) if found[0].name == name]:
        return _described(called)[0]
    word, known = kind or "method or allocator", names(kind)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    there = f"there are {', '.join(known)}" if known else "none is installed"
    raise UsageError(
        f"no {word} is called {name!r}; {there}",
        hint=f"did you mean {near[0]}?" if near else "prunekit methods",
    )


@overload
def load(name: str, kind: Literal["method"] = "method") -> "type[Method]": ...
@overload
def load(name: str, kind: Literal["allocator"]) -> "type[Allocator]": ...
@overload
def load(name: str, kind: Literal["recovery"]) -> "type[Recovery]": ...
def load(name: str, kind: Kind = "method") -> "type[Method] | type[Allocator] | type[Recovery]":
    """Import a plug-in's class.

    Raises UsageError for an unknown name, UnsupportedError when the plug-in is broken or not what it claims.
    """
    plugin = find(name, kind)
    try:
        loaded = plugin.entry.load()
        problem = _misfit(loaded, plugin)
    except (Exception, SystemExit) as error:
        raise _broken(plugin, f"{type(error).__name__}: {error}") from error
    if problem:
        raise _broken(plugin, problem)
    return loaded


def _broken(plugin: Plugin, reason: str) -> UnsupportedError:
    origin = f"{plugin.distribution} {plugin.version}".strip()
    return UnsupportedError(
        f"the {plugin.kind} {plugin.name} of {origin} does not work: {reason}",
        hint=f"upgrade or remove {plugin.distribution}; prunekit doctor checks every plug-in",
    )


def _misfit(loaded: object, plugin: Plugin) -> str | None:
    """How a loaded object differs from what its entry point promises."""
    from prunekit import contract

    bases = {"method": contract.Method, "allocator": contract.Allocator, "recovery": contract.Recovery}
    base = bases[plugin.kind]
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        return f"{plugin.entry.value} is not a subclass of prunekit.contract.{base.__name__}"
    if getattr(loaded, "name", None) != plugin.name:
        return f"{plugin.entry.value} calls itself {getattr(loaded, 'name', None)!r}"
    return None


def _entries(group: str) -> list[EntryPoint]:
    """The entry points of a group, each once; prunekit's own come first where two share a name."""
    once = {(entry.name, entry.value, _origin(entry)): entry for entry in entry_points(group=group)}
    return [once[key] for key in sorted(once, key=lambda key: (key[0], key[2][0] != BUILT_IN, key[2]))]


def _origin(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")


def _without_rivals(found: list[Plugin]) -> Iterator[Plugin]:
    """The first plug-in of a name keeps it; the others stay only to be shown as broken."""
    owners: dict[tuple[Kind, str], Plugin] = {}
    for plugin in found:
        owner = owners.setdefault((plugin.kind, plugin.name), plugin)
        taken = f"the name is taken by {owner.distribution}" if owner is not plugin else None
        yield replace(plugin, problem=plugin.problem or taken)


def _describe(entry: EntryPoint, kind: Kind) -> Plugin:
    distribution, version = _origin(entry)
    try:
        source = _source(entry.module).read_text(encoding="utf-8")
        summary, paper, needs_ratio = _say_of_themselves(source, entry.attr)
    except (LookupError, OSError, ValueError, SyntaxError) as error:
        return Plugin(entry.name, kind, "", "", distribution, version, entry, problem=str(error))
    return Plugin(entry.name, kind, summary, paper, distribution, version, entry, needs_ratio)


def _source(module: str) -> Path:
    """The file of a module, found without importing anything; raises LookupError when there is none."""
    parts = module.split(".")
    spec: ModuleSpec | None = importlib.util.find_spec(parts[0])
    for depth in range(2, len(parts) + 1):
        folders = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(".".join(parts[:depth]), folders) if folders else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise LookupError(f"no source file for the module {module}")
    return Path(spec.origin)


def _say_of_themselves(source: str, class_name: str) -> tuple[str, str, bool]:
    """First docstring line of a class (else of its module), its `paper`, and whether it needs a ratio."""
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    docstrings = [ast.get_docstring(node) or "" for node in (*classes, tree)]
    summary = next((text.partition("\n")[0] for text in docstrings if text), "")
    paper = next((text for node in classes for text in _strings(node, "paper")), "")
    return summary, paper, not any(map(_says_no_ratio, classes))


def _says_no_ratio(node: ast.ClassDef) -> bool:
    """Whether the body of a class calls something with `ratio=False`, as in `needs = Needs(ratio=False)`."""
    calls = [call for part in node.body if isinstance(part, ast.Assign | ast.AnnAssign) for call in ast.walk(part)]
    given = [word for call in calls if isinstance(call, ast.Call) for word in call.keywords if word.arg == "ratio"]
    return any(isinstance(word.value, ast.Constant) and word.value.value is False for word in given)


def _strings(node: ast.ClassDef, name: str) -> Iterator[str]:
    """Every string that the body of a class assigns to a name, with or without an annotation."""
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.Constant(value=str(text))):
                yield from [text] if target == name else []
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Constant(value=str(text))):
                yield from [text] if target == name else []
