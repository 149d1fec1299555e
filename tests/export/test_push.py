"""What is pushed is what was shown, in one commit, and the token is seen by nobody but the hub."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from typer.testing import CliRunner, Result

from fake_hub import COMMIT, FakeHub, Repository
from prunekit.testing import bytes_of

TOKEN = "hf_aSecretThatNobodySees0123456789"
Push = Callable[..., Result]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    made = FakeHub()
    yield made
    made.close()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """A small model without half of its blocks, in two weight files."""
    from prunekit.recipe.settings import build
    from prunekit.run.pipeline import prune

    folder = tmp_path_factory.mktemp("pruned") / "out"
    flags = {"model": str(inputs / "source"), "method": "layers", "eval_quick": False, "max_shard_size": "60KB"}
    recipe, _ = build(flags, ["blocks=1", "export.verify=off"])
    prune(recipe, folder)
    return folder


@pytest.fixture
def push(hub: FakeHub, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """`push("me/small", ...)` runs the command in this process, for which the fake hub is the hub."""
    from huggingface_hub import constants

    from prunekit.cli.app import app

    for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))

    def run(*words: str, folder: Path = pruned, token: str | None = TOKEN) -> Result:
        environment = {"HF_TOKEN": token, "COLUMNS": None}
        done = CliRunner().invoke(app, ["push", str(folder), *words], env=environment)
        assert TOKEN not in done.output
        return done

    return run


def test_a_new_repository_holds_the_folder_and_the_card_names_it(push: Push, hub: FakeHub, pruned: Path) -> None:
    done = push("me/small")
    assert (done.exit_code, done.stdout) == (0, f"{hub.endpoint}/me/small\n"), done.stderr
    found = hub.repositories["me/small"]
    assert found.files.keys() == bytes_of(pruned).keys() and not found.private
    for name, content in found.files.items():
        assert name == "README.md" or content == (pruned / name).read_bytes()
    card = found.files["README.md"].decode()
    assert 'AutoModelForCausalLM.from_pretrained("me/small")' in card and "FOLDER" not in card
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert found.messages == ["source, pruned with layers by prunekit 0.1.0"]
    for name in ("model-00001-of-", "prunekit.json", "in all"):
        assert name in done.stderr


def test_a_dry_run_shows_the_same_and_asks_nobody(push: Push, hub: FakeHub) -> None:
    done = push("me/small", "--dry-run", "--private", "--json", token=None)
    assert done.exit_code == 0 and hub.requests == []
    shown = json.loads(done.stdout)
    assert (shown["dry_run"], shown["url"], shown["private"]) == (True, None, True)
    assert {"README.md", "config.json", "prunekit.json"} < {file["name"] for file in shown["files"]}
    assert "nothing is uploaded: --dry-run" in done.stderr


def test_private_is_private_from_the_beginning_and_never_public_by_mistake(push: Push, hub: FakeHub) -> None:
    assert push("me/hidden", "--private").exit_code == 0
    assert hub.repositories["me/hidden"].private
    hub.repositories["me/open"] = Repository(private=False, files={"prunekit.json": b"{}"})
    refused = push("me/open", "--private")
    assert refused.exit_code == 2 and "exists and is public, which --private does not change" in refused.stderr
    assert list(hub.repositories["me/open"].files) == ["prunekit.json"]


def test_an_older_upload_is_replaced_and_its_shards_go(push: Push, hub: FakeHub) -> None:
    old = {"prunekit.json": b"{}", "model-00001-of-00009.safetensors": b"old", "notes.txt": b"stays"}
    hub.repositories["me/small"] = Repository(files=old)
    done = push("me/small", "--json")
    assert json.loads(done.stdout)["commit"] == COMMIT
    found = hub.repositories["me/small"].files
    assert "model-00001-of-00009.safetensors" not in found and found["notes.txt"] == b"stays"
    assert len(hub.repositories["me/small"].messages) == 1


def test_somebody_elses_model_is_not_written_over(push: Push, hub: FakeHub) -> None:
    hub.repositories["me/other"] = Repository(files={"README.md": b"", "pytorch_model.bin": b"x"})
    refused = push("me/other")
    assert refused.exit_code == 2 and "prunekit did not write: pytorch_model.bin" in refused.stderr
    assert push("me/other", "--force").exit_code == 0


def test_only_files_of_a_model_are_uploaded(push: Push, hub: FakeHub, pruned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in pruned.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (folder / "checkpoints").mkdir()
    done = push("me/small", folder=folder)
    assert done.exit_code == 0
    assert {".env", "checkpoints"}.isdisjoint(hub.repositories["me/small"].files)
    assert "note: .env is not part of a model and is not uploaded" in done.stderr


@pytest.mark.parametrize(
    ("path", "status", "hint"),
    [
        ("/repos/create", 403, "hf auth login"),
        ("/commit/main", 500, ""),
        ("/api/models/me/small$", 401, "hf auth login"),
    ],
)
def test_an_error_of_the_hub_is_told_without_the_token(
    path: str, status: int, hint: str, push: Push, hub: FakeHub
) -> None:
    hub.refuse = (path, status, {"error": f"token {TOKEN} may not do that"})
    done = push("me/small", "--debug", "--json")
    assert done.exit_code == 4, done.stderr
    error = json.loads(done.stdout)["error"]
    assert "the hub did not take me/small" in error["message"] and "Traceback" not in done.stderr
    assert hint in (error["hint"] or "")


def test_what_cannot_be_pushed_is_said_before_the_hub_is_asked(push: Push, hub: FakeHub, inputs: Path) -> None:
    assert "nobody is logged in" in push("me/small", token=None).stderr
    assert "expected owner/name" in push("small").stderr
    assert "cannot read" in push("me/small", folder=inputs / "source").stderr
    assert hub.requests == []


def test_the_cards_metadata_is_what_the_hub_reads(pruned: Path) -> None:
    assert metadata_load(pruned / "README.md")["tags"] == ["prunekit", "pruned", "layers"]


@pytest.mark.slow
def test_a_process_of_its_own_tells_the_token_to_the_hub_alone(hub: FakeHub, pruned: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "PRUNEKIT_CACHE": str(tmp_path),
    }
    command = [sys.executable, "-m", "prunekit", "push", str(pruned), "me/small", "--debug", "-v"]
    for refuse, code in ((None, 0), (("/commit/main", 500, {"error": f"not with {TOKEN}"}), 4)):
        hub.refuse = refuse
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        logs = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
        assert done.returncode == code and TOKEN not in done.stdout + done.stderr + logs, done.stderr
    assert hub.tokens == {f"Bearer {TOKEN}"}
