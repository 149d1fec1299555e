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
from prunekit.export.staging import Staging
from prunekit.export.target import check_target
from prunekit.files import storage_errors, write_atomically

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


def begin(target: Path, signature: dict[str, Any] = SIGNATURE, **options: Any) -> Staging:
    return Staging.open(target, signature, **options)


def interrupted(target: Path) -> Staging:
    """A run that finished one block and was then lost."""
    staging = begin(target)
    staging.edits.write_block(0, TENSORS, ["a remark"])
    staging.release()
    return staging


MODEL = ("config.json", "model.safetensors", "prunekit.json")


def write_model(folder: Path, content: str = "{}", names: tuple[str, ...] = MODEL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def publish(target: Path, content: str = "{}", **options: bool) -> None:
    with begin(target, **options) as staging:
        staging.edits.write_block(0, TENSORS)
        write_model(staging.export_dir, content)
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
    staging.edits.write_block(3, TENSORS, ["a remark"])

    assert staging.edits.has_block(3) and not staging.edits.has_block(2)
    assert staging.edits.finished_blocks() == 1
    assert staging.edits.notes(3) == ["a remark"]
    read = staging.edits.read_block(3, list(TENSORS))
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_the_bytes_of_a_block_do_not_depend_on_the_order_of_its_tensors(target: Path) -> None:
    staging = begin(target)
    staging.edits.write_block(0, TENSORS)
    staging.edits.write_block(1, dict(reversed(TENSORS.items())))

    assert staging.edits.block_path(0).read_bytes() == staging.edits.block_path(1).read_bytes()


def test_the_same_run_is_taken_up_again(target: Path) -> None:
    interrupted(target)

    with begin(target) as again:
        assert again.resumed
        assert again.edits.has_block(0)
        assert again.edits.notes(0) == ["a remark"]


def test_tuples_and_numbers_of_a_signature_survive_its_json(target: Path) -> None:
    signature: dict[str, Any] = {"plan": (1, 2.5), "none": None, "nested": {"a": (True,)}}
    begin(target, signature).edits.write_block(0, TENSORS)

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
    assert begin(target).edits.has_block(0)


def test_restart_drops_what_was_finished(target: Path) -> None:
    interrupted(target)

    staging = begin(target, SIGNATURE | {"device": "cuda"}, restart=True)

    assert not staging.resumed
    assert staging.edits.finished_blocks() == 0
    assert json.loads((staging.folder / "signature.json").read_text(encoding="utf-8"))["device"] == "cuda"


def test_a_run_that_finished_no_block_stands_in_nobodys_way(target: Path) -> None:
    begin(target).release()

    assert not begin(target, {"other": 1}).resumed


def test_leaving_keeps_finished_blocks_and_clears_away_a_folder_without_any(target: Path) -> None:
    with begin(target) as staging:
        pass
    assert not staging.folder.exists()

    with begin(target) as staging:
        staging.edits.write_block(0, TENSORS)
    assert staging.edits.has_block(0)


def test_what_an_interrupted_run_had_exported_is_dropped(target: Path) -> None:
    staging = interrupted(target)
    staging.export_dir.mkdir()
    (staging.export_dir / "model-00001-of-00009.safetensors").touch()

    assert not begin(target).export_dir.exists()


def test_a_block_whose_writing_was_cut_short_is_not_finished(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = begin(target)
    staging.edits.write_block(0, TENSORS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            staging.edits.write_block(1, TENSORS)

    assert [path.name for path in sorted((staging.folder / "blocks").iterdir())] == [
        "00000.safetensors",
        "00001.partial",
    ]
    assert not staging.edits.has_block(1)
    assert staging.edits.finished_blocks() == 1
    staging.edits.write_block(1, TENSORS)
    assert staging.edits.block_path(1).read_bytes() == staging.edits.block_path(0).read_bytes()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_publishing_moves_the_folder_into_place_and_leaves_nothing_else(target: Path) -> None:
    publish(target)

    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert contents(target) == dict.fromkeys(MODEL, "{}")


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
    (target / "model-00001-of-00002.safetensors").touch()

    publish(target, "new", force=True)

    assert contents(target) == dict.fromkeys(MODEL, "new")
    assert [path.name for path in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (("thesis.tex",), "thesis.tex"),
        (("config.json",), "config.json"),
        (("config.json", "model.safetensors", "data.csv"), "data.csv"),
        (("config.json", "model.safetensors", "optimizer.pt"), "optimizer.pt"),
    ],
)
def test_force_deletes_nothing_but_a_model(target: Path, names: tuple[str, ...], lost: str) -> None:
    write_model(target, "mine", names)

    for force in (True, False):
        with pytest.raises(UsageError) as caught:
            begin(target, force=force)
        assert f"--force would delete {lost}" in caught.value.message or not force
        assert lost in str(caught.value.hint) and "-o" in str(caught.value.hint)
    assert contents(target) == dict.fromkeys(names, "mine")
    assert [path.name for path in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("names", [MODEL, ("config.json", "model.safetensors", "tokenizer.json", "LICENSE")])
def test_a_folder_in_a_model_folder_is_no_part_of_it(target: Path, names: tuple[str, ...]) -> None:
    write_model(target, "old", names)
    check_target(target, force=True)
    (target / "results").mkdir()

    with pytest.raises(UsageError, match="--force would delete results"):
        check_target(target, force=True)


def test_all_files_beside_prunekits_manifest_are_its_own(target: Path) -> None:
    write_model(target, "old", (*MODEL, "logo.png"))

    publish(target, "new", force=True)

    assert contents(target) == dict.fromkeys(MODEL, "new")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("out", "relation"),
    [("m", "is"), ("m/../m", "is"), ("link", "is"), ("m/out", "lies in"), (".", "holds"), ("link/out", "lies in")],
)
def test_the_model_that_is_read_is_never_the_target(tmp_path: Path, out: str, relation: str, force: bool) -> None:
    source = write_model(tmp_path / "a" / "m")
    (tmp_path / "a" / "link").symlink_to("m")

    with pytest.raises(UsageError, match=rf" {relation} the model that is read, .*a/m") as caught:
        begin(tmp_path / "a" / out, source=source, force=force)

    assert f"-o {source}-pruned" in str(caught.value.hint)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "link", "m", *MODEL]


class Cut(Exception):
    pass


@pytest.mark.parametrize("there", ["", "old"], ids=["empty", "model"])
@pytest.mark.parametrize("killed", [False, True], ids=["failed", "killed"])
def test_whenever_an_exchange_is_cut_short_what_was_there_comes_back(
    tmp_path: Path, there: str, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, cut = os.replace, 0
    for moment in range(20):
        target = tmp_path / str(moment)
        target.mkdir()
        if there:
            write_model(target, there)
        staging = begin(target, force=True)
        staging.edits.write_block(0, TENSORS)
        write_model(staging.export_dir, "new")
        counts = iter(range(100))

        def fail(*paths: Any, counts: Iterator[int] = counts, moment: int = moment) -> None:
            if next(counts) == moment:
                raise Cut
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            if killed:
                patch.setattr(Staging, "_put_back", lambda _: False)
            try:
                staging.publish()
            except Cut:
                cut += 1
            else:
                assert contents(target) == dict.fromkeys(MODEL, "new")
                break
        arrived = contents(target) == dict.fromkeys(MODEL, "new")
        assert arrived or not (target / "config.json").exists() or contents(target) == dict.fromkeys(MODEL, there)
        staging.release()
        if killed:
            begin(target, {"recipe": "another"}, restart=True, force=True).release()
        found = "new" if arrived else there
        assert contents(target) == (dict.fromkeys(MODEL, found) if found else {})
    assert cut == (8 if there else 5)


def test_an_old_folder_comes_back_also_when_the_target_is_gone(target: Path) -> None:
    staging = interrupted(target)
    write_model(staging.folder / "replaced", "old")

    with pytest.raises(UsageError, match="exists already"):
        begin(target, restart=True)

    assert contents(target) == dict.fromkeys(MODEL, "old")


def test_what_somebody_put_into_a_half_filled_folder_stays(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = interrupted(target)
    (staging.folder / "replaced").mkdir()
    (staging.folder / "arriving.json").write_text(json.dumps(MODEL))
    write_model(target, "new", ("model.safetensors", "mine"))

    with pytest.raises(UsageError, match="exists already"):
        begin(target)

    assert contents(target) == {"mine": "new"}


@pytest.fixture(params=["disk", "bind"])
def mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty folder on which something is mounted: a disk of its own, or a folder from elsewhere on the same one."""
    folder = tmp_path / "mount"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    how = {"disk": ["-t", "tmpfs", "tmpfs"], "bind": ["--bind", str(tmp_path / "elsewhere")]}[request.param]
    try:
        subprocess.run(["mount", *how, str(folder)], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs permission to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def test_a_mount_is_filled_and_works_in_itself(mount: Path) -> None:
    interrupted(mount)
    assert [path.name for path in mount.iterdir()] == [".prunekit"]
    (mount / "lost+found").mkdir()

    assert begin(mount).resumed
    publish(mount, "old")
    publish(mount, "new", force=True)

    (mount / "lost+found").rmdir()
    assert contents(mount) == dict.fromkeys(MODEL, "new")
    assert not [path.name for path in mount.parent.iterdir() if path.name.startswith(".")]


def test_the_current_folder_is_filled_and_stays_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with begin(Path()) as staging:
        assert staging.folder == tmp_path / ".here.prunekit" and staging.target == Path()

    publish(Path())

    assert contents(Path()) == dict.fromkeys(MODEL, "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    for force in (False, True):
        with pytest.raises(UsageError, match=r"^\.\. (exists already|is not a model folder)"):
            check_target(Path(".."), force=force)


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    write_model(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")

    publish(tmp_path / "link", "new", force=True)

    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == dict.fromkeys(MODEL, "new")


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_run_says_whether_anything_is_kept_and_drops_the_hidden_states(target: Path, kept: bool) -> None:
    staging = begin(target)
    staging.hidden.mkdir()
    (staging.hidden / "0").touch()
    if kept:
        staging.edits.write_block(0, TENSORS)
    assert staging.kept == kept

    with pytest.raises(KeyboardInterrupt) as caught, staging:
        raise KeyboardInterrupt

    assert vars(caught.value)["kept"] == kept == staging.kept
    assert not staging.hidden.exists() and staging.folder.exists() == kept


def test_hidden_states_of_a_killed_run_are_dropped(target: Path) -> None:
    staging = interrupted(target)
    staging.hidden.mkdir()

    assert not begin(target).hidden.exists()


def test_a_target_that_appeared_meanwhile_is_not_overwritten(target: Path) -> None:
    staging = begin(target)
    staging.edits.write_block(0, TENSORS)
    staging.export_dir.mkdir()
    target.mkdir()
    (target / "config.json").write_text("another's", encoding="utf-8")

    with pytest.raises(UsageError, match="exists already"):
        staging.publish()

    assert (target / "config.json").read_text(encoding="utf-8") == "another's"
    assert staging.edits.has_block(0)


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
    from prunekit.export.staging import Staging
    staging = Staging.open(Path(sys.argv[1]), {"recipe": 1})
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
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
    staging.edits.write_block(0, block)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(b"0" * 1_000_000)

    with pytest.raises(ResourceError, match="is full") as caught:
        staging.edits.write_block(1, block)

    assert caught.value.exit_code == 5
    assert "repeat the command" in str(caught.value.hint)
    assert not (small_disk / "out").exists()
    assert staging.edits.finished_blocks() == 1
    ballast.unlink()
    staging.release()
    with begin(small_disk / "out") as again:
        again.edits.write_block(1, block)
        assert again.edits.finished_blocks() == 2


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
    staging.edits.write_probe(torch.tensor([[1, 2]]), torch.ones(2, 5, dtype=torch.bfloat16))

    from safetensors.torch import load_file

    probe = load_file(staging.edits.probe_path)
    assert probe["input_ids"].tolist() == [[1, 2]]
    assert probe["logits"].dtype == torch.float32


def test_every_refusal_is_one_of_prunekits_errors(target: Path) -> None:
    target.touch()

    with pytest.raises(PrunekitError):
        begin(target)
