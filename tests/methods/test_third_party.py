"""A method that a stranger publishes works like one of our own, and a broken one beside it harms nothing.

`tests/test_docs.py` installs the example of `methods/README.md`; this file installs a small method of its own together
with distributions that are broken in three ways, all in one folder that stands on the import path of the commands.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forks import Ended, Server
from prunekit import testing as checks
from third_party import install, put

pytestmark = pytest.mark.slow

SCATTER = '''"""Scatter: zero weights at random, which is what every method must beat.

Paper: none; the control of every experiment.
"""

from typing import ClassVar

import torch
from prunekit.contract import Context, Method, Needs
from prunekit.plan import Pattern, PrunePlan
from prunekit.weights.masks import keep_per_row, plan_sparsity
from prunekit.blockwise.walk import walk
from pydantic import Field


class Scatter(Method):
    """Zero weights at random."""

    name: ClassVar[str] = "scatter"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs(budget=True)

    evenly: bool = Field(default=True, description="Zero as many weights in every row.")

    def plan(self, ctx: Context) -> PrunePlan:
        return plan_sparsity(ctx, self.name)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        for visit in walk(ctx):
            for linear in visit.linears:
                action, weight = plan.sparsify()[linear.path], linear.weight
                scores = torch.rand(weight.shape, generator=ctx.generator)
                keep = keep_per_row(scores, action.sparsity, Pattern.parse(action.pattern))
                linear.write(weight.masked_fill(~keep, 0))
'''
BROKEN = {
    "absent": "import a_library_that_nobody_installed\n",
    "garbled": "class Garbled(:\n",
    "humble": '"""Humble: is no method at all."""\n\n\nclass Humble:\n    name = "humble"\n',
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one working and three broken distributions are installed."""
    site = tmp_path_factory.mktemp("site")
    tools = all(importlib.util.find_spec(tool) for tool in ("pip", "setuptools"))
    if tools:
        install("scatter", SCATTER, site, tmp_path_factory.mktemp("project"))
    for name, source in (BROKEN if tools else {"scatter": SCATTER, **BROKEN}).items():
        put(name, source, site)
    return site


@pytest.fixture
def prunekit(server: Server, site: Path, tmp_path: Path) -> Callable[..., Ended]:
    """Run the command line in a process that can import from `site`."""
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return partial(server.run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths})


def answer(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_third_party_method_is_listed_with_its_options_beside_our_own(prunekit: Callable[..., Ended]) -> None:
    listed = {plugin["name"]: plugin for plugin in answer(prunekit("methods", "--json"))["methods"]}
    assert {"wanda", "sparsegpt", "magnitude", "scatter", *BROKEN} <= listed.keys()
    scatter = listed["scatter"]
    assert (scatter["distribution"], scatter["version"], scatter["problem"]) == ("prunekit-scatter", "1.5", None)
    assert scatter["summary"] == "Zero weights at random."
    assert "syntax" in listed["garbled"]["problem"]
    options = answer(prunekit("methods", "scatter", "--json"))["options"]
    assert [option["name"] for option in options] == ["evenly"]


def test_a_third_party_method_prunes_exports_and_verifies(
    prunekit: Callable[..., Ended], tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    settings = ("-m", "scatter", "--ratio", "0.25", "--set", "evenly=true", "--no-eval-quick", "--json")
    done = answer(prunekit("prune", tiny_llama(), *settings, "-o", "out"))
    assert done["sparsity"] == pytest.approx(0.25, abs=0.001)
    assert done["verification"]
    manifest = json.loads((tmp_path / "out" / "prunekit.json").read_text())
    assert manifest["recipe"]["method"] == "scatter"
    assert manifest["recipe"]["options"] == {"evenly": True}


def test_a_broken_third_party_is_shown_by_doctor_and_refused_by_name_while_the_others_work(
    prunekit: Callable[..., Ended], tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    model = tiny_llama()
    checked = {plugin["name"]: plugin["problem"] for plugin in answer(prunekit("doctor", "--json"))["plugins"]}
    assert "a_library_that_nobody_installed" in checked["absent"]
    assert "not a subclass" in checked["humble"]
    assert checked["garbled"]
    assert {checked[name] for name in ("wanda", "sparsegpt", "magnitude", "scatter", "uniform")} == {None}
    refused = prunekit("prune", model, "-m", "absent", "--ratio", "0.5", "-o", "out")
    assert refused.code == 3 and "prunekit-absent 1.5 does not work" in refused.stderr
    assert "Traceback" not in refused.stderr and not list(tmp_path.glob("*out*"))


def test_a_third_party_can_run_the_contract_checks_on_his_own_class(
    site: Path, tmp_path: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "scatter", raising=False)
    checks.check_method("scatter", importlib.import_module("scatter").Scatter, tiny_llama(), tmp_path / "work")
    monkeypatch.delitem(sys.modules, "scatter")
