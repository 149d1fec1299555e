import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunekit.export import verify as verification
from prunekit.export.checks import Check

from .conftest import Run


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    called: dict[str, Any] = {}

    def verify(folder: Path, expect: Path | None = None, mode: str = "auto", **more: Any) -> Any:
        called.update(folder=folder, mode=mode, **more)
        return verification.Verification(mode="full", checks=(Check(name="files", passed=True, detail="all there"),))

    monkeypatch.setattr(verification, "verify", verify)
    return called


def test_the_checks_are_the_result(run: Run, tmp_path: Path, checked: dict[str, Any]) -> None:
    result = run("verify", tmp_path, "--mode", "full", "--device", "cpu")

    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].split() == ["files", "passed", "all", "there"]
    assert (checked["folder"], checked["mode"], checked["device"]) == (tmp_path, "full", "cpu")
    found = json.loads(run("verify", "-", "--json", stdin=f"{tmp_path}\n").stdout)
    assert (found["passed"], found["comparison"]) == (True, None)


def test_differences_from_a_model_are_shown(run: Run, tiny_llama: Callable[..., Path], checked: dict[str, Any]) -> None:
    one, other = tiny_llama(name="one"), tiny_llama(name="other", seed=1)
    result = run("verify", one, "--against", other)
    found = json.loads(run("verify", one, "--against", other, "--json", "-q").stdout)

    assert result.exit_code == 0, result.stderr  # without a manifest nobody knows what was meant
    assert "model.layers.0.mlp.up_proj.weight" in result.stderr
    assert found["comparison"]["differing"]


def test_a_difference_that_the_manifest_does_not_name_ends_with_6(
    run: Run, tiny_llama: Callable[..., Path], checked: dict[str, Any]
) -> None:
    from prunekit.export.manifest import Manifest, Result, Source
    from prunekit.plan import PrunePlan

    one, other = tiny_llama(name="one"), tiny_llama(name="other", seed=1)
    plan = PrunePlan(method="wanda", ratio=0.5, actions=())
    counted = {"parameters": 1, "parameters_before": 1, "blocks": 1, "removed_blocks": ()}
    result = Result(**counted, weights=1, zeros=0, sparsity=0, linears={})
    source = Source(name="other", kind="folder", files={})
    Manifest.of(source=source, recipe={}, plan=plan, result=result).write(one)
    failed = run("verify", one, "--against", other)

    assert failed.exit_code == 6
    assert "differences that the manifest does not name" in failed.stderr


def test_wrong_words_are_refused(run: Run, tmp_path: Path) -> None:
    assert run("verify", tmp_path, "--mode", "half").exit_code == 2
    assert run("verify", "-", "--against", "-").exit_code == 2
    assert run("verify", tmp_path / "nowhere").exit_code == 4
