"""The worked examples of methods/README.md keep the contract, with the checks that the page recommends."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunekit import testing

PAGE = Path(__file__).parents[2] / "methods" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
EXAMPLES = {  # name -> the check for it, of prunekit.testing
    "ria": testing.check_method,
    "strided": testing.check_method,
    "quiet": testing.check_method,
    "edges": testing.check_allocator,
    "affine": testing.check_recovery,
}


def plug_in(name: str, folder: Path) -> Any:
    """The class that an example defines, from a module as its author would have it."""
    (source,) = (block for block in BLOCKS if f'name: ClassVar[str] = "{name}"' in block)
    file = folder / f"{name}.py"
    file.write_text(source)
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    exec(compile(source, file, "exec"), vars(module))
    return next(found for found in vars(module).values() if getattr(found, "name", None) == name)


def test_every_example_of_the_page_is_tested_here() -> None:
    named = {name for block in BLOCKS for name in re.findall(r'name: ClassVar\[str\] = "(\w+)"', block)}
    assert named == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_keeps_the_contract(name: str, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    check: Any = EXAMPLES[name]
    more = () if check is testing.check_allocator else (tmp_path / "work",)
    try:
        check(name, plug_in(name, tmp_path), tiny_llama(), *more)
    finally:
        sys.modules.pop(name, None)


def test_every_name_of_the_api_that_the_page_shows_exists() -> None:
    from prunekit import api

    table = PAGE.read_text(encoding="utf-8").split("| from `prunekit.api` |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named - set(api.__all__) == set()
    assert all(hasattr(api, name) for name in api.__all__)
