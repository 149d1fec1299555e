"""YAML as prunekit reads it: safe, of version 1.2's plain values, with unique keys.

PyYAML follows YAML 1.1, where `2:4` is the number 124, `off` is false and `1e-3` is a string; recipes hold
all three. Anything but plain data (tags such as `!!python/object`, repeated keys) is an error with its line.
"""

import re
from typing import Any

import yaml
from yaml.composer import ComposerError

from prunekit.errors import RecipeError

DEEPEST = 50  # lists and mappings within each other
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain values of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own interface)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node with all that is in it, which PyYAML composes by recursion, however deep that goes."""
        if self.depth == DEEPEST:
            raise ComposerError(None, None, "nested too deeply", self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse(text: str, *, name: str) -> Any:
    """The plain data in a YAML text; raises RecipeError with `name` and the line of the first fault."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, name, [], set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{_place(name, error.problem_mark)}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{name} is not YAML: {str(error).splitlines()[0]}") from error


def _check(node: yaml.Node, name: str, above: list[yaml.Node], done: set[int]) -> None:
    """Refuse tags, repeated keys and cycles before anything is constructed; looks at a shared node once."""
    if node.tag not in PLAIN_TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise RecipeError(
            f"{_place(name, node.start_mark)}: the tag {tag} is not plain data",
            hint="write the value without a tag",
        )
    if any(node is parent for parent in above):
        raise RecipeError(f"{_place(name, node.start_mark)}: the alias refers to what it stands in")
    if id(node) in done or isinstance(node, yaml.ScalarNode):
        return
    done.add(id(node))
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, name)
    for part in _parts(node):
        _check(part, name, [*above, node], done)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value)


def _check_keys(node: yaml.MappingNode, name: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{_place(name, key.start_mark)}: a key is a list or a mapping; a name was expected")
        if key.value in seen:
            raise RecipeError(
                f"{_place(name, key.start_mark)}: the key {key.value} stands twice", hint="keep one of them"
            )
        seen.add(key.value)


def _place(name: str, mark: yaml.Mark | None) -> str:
    return name if mark is None else f"{name}, line {mark.line + 1}"
