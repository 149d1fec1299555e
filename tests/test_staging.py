import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.errors import InputError, PrunekitError, ResourceError, UsageError
from prunekit.staging import Staging, check_target, storage_errors, write_atomically

SIGNATURE: dict[str, Any] = {
    "recipe": {"ratio": 0.5, "options": {"block_size": 128}},
    "source": {"model.safetensors": "a" * 64},
    "versions": {"torch": "2"},
}
TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "a.weight": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


def begin(target: Path, signature: dict[str, Any] = SIGNATURE, **options: bool) -> Staging:
    return Staging.open(target, signature, **options)


def interrupted(target: Path) -> Staging:
    """A run that finished one block and was then lost."""
    staging = begin(target)
    staging.write_block(0, TENSORS, ["a remark"])
    staging.release()
    return staging


def publish(target: Path, content: str = "{}", **options: bool) -> None:
    with begin(target, **options) as staging:
        staging.write_block(0, TENSORS)
        staging.export_dir.mkdir()
        (staging.export_dir / "config.json").write_text(content, encoding="utf-8")
        staging.publish()


def test_a_run_works_in_a_hidden_folder_beside_its_target(target: Path) -> None:
    staging = begin(target)

    assert staging.folder == target.parent / ".out.prunekit"
    assert not staging.resumed
    assert not target.exists()


def test_folders_above_the_target_are_made(tmp_path: Path) -> None:
    assert begin(tmp_path / "a" / "b" / "out").folder.is_dir()


def test_a_finished_block_reads_back_with_its_dtypes_and_remarks(target: Path) -> None:
    staging = begin(target)
    staging.write_block(3, TENSORS, ["a remark"])

    assert staging.has_block(3) and not staging.has_block(2)
    assert staging.finished_blocks() == 1
    assert staging.notes(3) == ["a remark"]
    read = staging.read_block(3, list(TENSORS))
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_the_bytes_of_a_block_do_not_depend_on_the_order_of_its_tensors(target: Path) -> None:
    staging = begin(target)
    staging.write_block(0, TENSORS)
    staging.write_block(1, dict(reversed(TENSORS.items())))

    assert staging.block_path(0).read_bytes() == staging.block_path(1).read_bytes()


def test_the_same_run_is_taken_up_again(target: Path) -> None:
    interrupted(target)

    with begin(target) as again:
        assert again.resumed
        assert again.has_block(0)
        assert again.notes(0) == ["a remark"]


def test_tuples_and_numbers_of_a_signature_survive_its_json(target: Path) -> None:
    signature: dict[str, Any] = {"plan": (1, 2.5), "none": None, "nested": {"a": (True,)}}
    begin(target, signature).write_block(0, TENSORS)

    assert begin(target, signature).resumed


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"recipe": {"ratio": 0.6, "options": {"block_size": 128}}}, r"in recipe\.ratio \(0\.5, now 0\.6\)$"),
        ({"recipe": {"ratio": 0.5, "options": {"block_size": 64}}}, r"in recipe\.options\.block_size \(128, now 64\)$"),
        (
            {"source": {"model.safetensors": "b" * 64}},
            r"source\.model\.safetensors \(aaaaaaaaaaaa…, now bbbbbbbbbbbb…\)$",
        ),
        ({"device": "cuda"}, r"in device \(None, now cuda\)$"),
        (
            {"recipe": {"ratio": 0.7, "options": {"block_size": 128}}, "versions": {}},
            r"in recipe\.ratio \(0\.5, now 0\.7\); versions\.torch \(2, now None\)$",
        ),
    ],
)
def test_another_run_is_refused_with_the_innermost_difference(target: Path, change: dict[str, Any], found: str) -> None:
    interrupted(target)

    with pytest.raises(UsageError, match=found) as caught:
        begin(target, SIGNATURE | change)

    assert "--restart" in str(caught.value.hint)
    assert begin(target).has_block(0)


def test_restart_drops_what_was_finished(target: Path) -> None:
    interrupted(target)

    staging = begin(target, SIGNATURE | {"device": "cuda"}, restart=True)

    assert not staging.resumed
    assert staging.finished_blocks() == 0
    assert json.loads((staging.folder / "signature.json").read_text(encoding="utf-8"))["device"] == "cuda"


def test_a_run_that_finished_no_block_stands_in_nobodys_way(target: Path) -> None:
    begin(target).release()

    assert not begin(target, {"other": 1}).resumed


def test_leaving_keeps_finished_blocks_and_clears_away_a_folder_without_any(target: Path) -> None:
    with begin(target) as staging:
        pass
    assert not staging.folder.exists()

    with begin(target) as staging:
        staging.write_block(0, TENSORS)
    assert staging.has_block(0)


def test_what_an_interrupted_run_had_exported_is_dropped(target: Path) -> None:
    staging = interrupted(target)
    staging.export_dir.mkdir()
    (staging.export_dir / "model-00001-of-00009.safetensors").touch()

    assert not begin(target).export_dir.exists()


def test_a_block_whose_writing_was_cut_short_is_not_finished(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = begin(target)
    staging.write_block(0, TENSORS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            staging.write_block(1, TENSORS)

    assert [path.name for path in sorted((staging.folder / "blocks").iterdir())] == [
        "00000.safetensors",
        "00001.partial",
    ]
    assert not staging.has_block(1)
    assert staging.finished_blocks() == 1
    staging.write_block(1, TENSORS)
    assert staging.block_path(1).read_bytes() == staging.block_path(0).read_bytes()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_publishing_moves_the_folder_into_place_and_leaves_nothing_else(target: Path) -> None:
    publish(target)

    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_publishing_into_an_empty_folder_needs_no_force(target: Path) -> None:
    target.mkdir()
    publish(target)

    assert (target / "config.json").is_file()


def test_an_existing_target_is_refused_and_kept(target: Path) -> None:
    publish(target, "old")

    with pytest.raises(UsageError, match="exists already") as caught:
        publish(target, "new")

    assert "--force" in str(caught.value.hint)
    assert (target / "config.json").read_text(encoding="utf-8") == "old"


def test_force_replaces_an_existing_folder_whole(target: Path) -> None:
    publish(target, "old")
    (target / "stale").touch()

    publish(target, "new", force=True)

    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert (target / "config.json").read_text(encoding="utf-8") == "new"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_target_that_appeared_meanwhile_is_not_overwritten(target: Path) -> None:
    staging = begin(target)
    staging.write_block(0, TENSORS)
    staging.export_dir.mkdir()
    target.mkdir()
    (target / "config.json").write_text("another's", encoding="utf-8")

    with pytest.raises(UsageError, match="exists already"):
        staging.publish()

    assert (target / "config.json").read_text(encoding="utf-8") == "another's"
    assert staging.has_block(0)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_at_the_target_is_never_replaced(target: Path, force: bool) -> None:
    target.write_text("precious", encoding="utf-8")

    with pytest.raises(UsageError, match="exists already") as caught:
        check_target(target, force=force)

    assert caught.value.hint == "choose another place with -o"


def test_an_unwritable_target_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match=r"cannot write .*Not a directory") as caught:
        begin(tmp_path / "file" / "out")

    assert caught.value.exit_code == 4
    assert "-o" in str(caught.value.hint)


HOLDER = """
    import sys, time
    from pathlib import Path
    from prunekit.staging import Staging
    staging = Staging.open(Path(sys.argv[1]), {"recipe": 1})
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_at_once_on_one_target_are_refused_until_the_first_ends_or_is_killed(target: Path) -> None:
    pytest.importorskip("fcntl", reason="needs file locks")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for options in ({}, {"restart": True}, {"force": True}):
            with pytest.raises(UsageError, match="another run is at work on") as caught:
                begin(target, {"recipe": 2}, **options)
            assert caught.value.exit_code == 2
        other.kill()

    assert not begin(target, {"recipe": 2}).resumed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs permission to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_a_full_disk_is_a_resource_error_and_the_run_goes_on_once_there_is_space(small_disk: Path) -> None:
    staging = begin(small_disk / "out")
    block = {"weight": torch.ones(25_000)}
    staging.write_block(0, block)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(b"0" * 1_000_000)

    with pytest.raises(ResourceError, match="is full") as caught:
        staging.write_block(1, block)

    assert caught.value.exit_code == 5
    assert "repeat the command" in str(caught.value.hint)
    assert not (small_disk / "out").exists()
    assert staging.finished_blocks() == 1
    ballast.unlink()
    staging.release()
    with begin(small_disk / "out") as again:
        again.write_block(1, block)
        assert again.finished_blocks() == 2


def test_a_disk_without_room_for_the_first_file_leaves_nothing(small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(b"0" * 1_000_000)

    with pytest.raises(ResourceError, match="is full"):
        begin(small_disk / "out")

    assert not (small_disk / "out").exists()


@pytest.mark.parametrize("message", ["I/O error: No space left on device (os error 28)", "No space left"])
def test_a_full_disk_is_recognised_in_the_words_of_other_libraries(tmp_path: Path, message: str) -> None:
    with pytest.raises(ResourceError), storage_errors(tmp_path / "out"):
        raise RuntimeError(message)


def test_errors_that_are_not_about_storage_pass(tmp_path: Path) -> None:
    for error in (ValueError("no"), UsageError("no")):
        with pytest.raises(type(error), match="no"), storage_errors(tmp_path):
            raise error


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f.json", "long text")
    write_atomically(tmp_path / "f.json", "é")

    assert (tmp_path / "f.json").read_bytes() == "é".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_probe_is_kept_in_float32(target: Path) -> None:
    staging = begin(target)
    staging.write_probe(torch.tensor([[1, 2]]), torch.ones(2, 5, dtype=torch.bfloat16))

    from safetensors.torch import load_file

    probe = load_file(staging.probe_path)
    assert probe["input_ids"].tolist() == [[1, 2]]
    assert probe["logits"].dtype == torch.float32


def test_every_refusal_is_one_of_prunekits_errors(target: Path) -> None:
    target.touch()

    with pytest.raises(PrunekitError):
        begin(target)
