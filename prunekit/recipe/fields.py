"""What the fields of a pydantic model accept, in words: for errors, for help, and for commented recipes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from prunekit.recipe.options import EVALUATION_GATES, OPTIONS

NOUNS = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "a text",
    "array": "a list",
    "object": "a mapping",
}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


@dataclass(frozen=True)
class FieldText:
    """One field in words: `accepts` reads 'a number above 0 and below 1'."""

    name: str
    accepts: str
    default: Any
    description: str


def fields(model: type[BaseModel]) -> list[FieldText]:
    """The fields of a model in the order in which they are declared."""
    schema = model.model_json_schema()
    shared = schema.get("$defs", {})
    return [
        FieldText(name, _accepts(part, shared), part.get("default"), part.get("description", ""))
        for name, part in schema.get("properties", {}).items()
    ]


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that a misspelt one was probably meant to be."""
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.5)), None)


def fault(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """The first thing wrong with a model's input: its dotted path, and what was found and expected."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "value_error":
        return ".".join(path), first["msg"].removeprefix("Value error, ")
    return ".".join(path), f"is {shorten(first['input'])}; expected {_expected(model, path) or first['msg']}"


def shorten(value: Any, limit: int = 40) -> str:
    """A value as it may stand in an error message; a text is quoted where it would be misread."""
    text = value if isinstance(value, str) and value.strip() == value != "" else repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _expected(model: type[BaseModel], path: list[str]) -> str | None:
    """What the field at a path accepts; None when the path leads into free-form data."""
    schema = model.model_json_schema()
    shared, part = schema.get("$defs", {}), schema
    for name in path:
        whole = _resolve(part, shared)
        part = whole.get("properties", {}).get(name) or whole.get("additionalProperties")
        if not isinstance(part, dict):  # true: whatever one likes
            return None
    return _accepts(part, shared)


def _resolve(part: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = part.get("$ref")
    return shared[reference.rpartition("/")[2]] if reference else part


def _accepts(part: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    part = _resolve(part, shared)
    if "examples" in part:
        return f"a text such as {' or '.join(part['examples'])}"
    if "anyOf" in part:
        return " or ".join(_accepts(choice, shared) for choice in part["anyOf"] if choice.get("type") != "null")
    if "enum" in part or "const" in part:
        return _choice([str(value) for value in part.get("enum", [part.get("const")])])
    bounds = [f"{word} {part[key]:g}" for key, word in BOUNDS.items() if key in part]
    noun = NOUNS.get(part.get("type", ""), "a value")
    if {"minimum", "maximum"} <= part.keys():
        return f"{noun} from {part['minimum']:g} to {part['maximum']:g}"
    return f"{noun}{' of ' if bounds and bounds[0].startswith('at') else ' '}{' and '.join(bounds)}".strip()


def _choice(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


def described(option: str, **bounds: Any) -> Any:
    """A field with the default and the sentence that `options` has for it."""
    told = OPTIONS.get(option) or EVALUATION_GATES[option]
    return Field(default=told.default, description=told.text, **bounds)
