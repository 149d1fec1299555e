from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from prunekit.errors import InputError, UnsupportedError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.hub import UNWANTED, WANTED, locate, short_name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that hands out one snapshot folder; what it was asked for is kept in `asked`."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    state: dict[str, Any] = {"folder": folder, "asked": None}

    def snapshot_download(name: str, **options: Any) -> str:
        state["asked"] = (name, options["revision"], options["local_files_only"])
        if error := state.get("error"):
            raise error
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_sample_is_the_bundled_model() -> None:
    assert Checkpoint.open(locate("sample")).config["model_type"] == "llama"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("org/name", ("org/name", None)),
        ("gpt2", ("gpt2", None)),
        ("org/name@main", ("org/name", "main")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("org/name@", ("org/name", None)),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_anything_else_is_a_hub_id_with_an_optional_revision(
    hub: dict[str, Any], spec: str, asked: tuple[str, str | None], offline: bool
) -> None:
    assert locate(spec, offline=offline) == hub["folder"]
    assert hub["asked"] == (*asked, offline)


@pytest.mark.parametrize("spec", ["./absent", "/absent/folder", "~/absent", "a/b/c", "with space/name", ""])
def test_what_is_neither_a_folder_nor_a_hub_id_does_not_exist(hub: dict[str, Any], spec: str) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        locate(spec)

    assert hub["asked"] is None
    assert caught.value.exit_code == 4


def test_an_unknown_hub_id_offline_says_where_to_fetch_it() -> None:
    with pytest.raises(InputError, match="not in the hub's cache") as caught:
        locate("nobody/nothing", offline=True)

    assert caught.value.exit_code == 4
    assert caught.value.hint == "fetch it where there is a network: hf download nobody/nothing"


def test_a_name_the_hub_would_never_accept_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cannot fetch a--b/c"):
        locate("a--b/c", offline=True)


def test_a_connection_that_breaks_is_an_input_error(hub: dict[str, Any]) -> None:
    hub["error"] = RuntimeError("peer closed connection")

    with pytest.raises(InputError, match="cannot fetch org/name from the hub: peer closed connection"):
        locate("org/name")


def test_a_hub_model_of_pickles_only_is_refused_with_the_command_that_converts_it(hub: dict[str, Any]) -> None:
    (hub["folder"] / "model.safetensors").unlink()

    with pytest.raises(UnsupportedError, match="org/name has no safetensors") as caught:
        locate("org/name")

    assert "M.from_pretrained('org/name'" in str(caught.value.hint)
    assert "prune name-safetensors" in str(caught.value.hint)


def test_a_cache_without_the_weights_is_an_input_error(hub: dict[str, Any]) -> None:
    (hub["folder"] / "model.safetensors").unlink()

    with pytest.raises(InputError, match="without its weights"):
        locate("org/name", offline=True)


def test_only_what_a_folder_needs_is_downloaded() -> None:
    files = [
        *("model.safetensors", "config.json", "tokenizer.model", "LICENSE", "merges.txt"),
        *("pytorch_model.bin", "consolidated.safetensors", "original/params.json", "model.fp16.safetensors"),
    ]

    kept = list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=WANTED, ignore_patterns=UNWANTED))

    assert kept == files[:5]


def test_the_short_name_is_the_last_part_without_the_revision(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()

    assert short_name("org/name@main") == "name"
    assert short_name("gpt2") == "gpt2"
    assert short_name("sample") == "sample"
    assert short_name(str(tmp_path / "a@b")) == "a@b"
