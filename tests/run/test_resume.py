"""Whatever ends a run, a kill, a signal or a full disk: nothing half-made is seen, and the same command goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from forks import Ended, Server
from prunekit.testing import bytes_of

pytestmark = pytest.mark.slow

BLOCKS = 4  # of the model in `inputs`
STAGED = ".out.prunekit"
KEPT = "the finished blocks are kept; the same command continues from them"
Prune = Callable[..., Ended]


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run writes, and its changes of the disk up to the moment when the result is in place."""

    bytes: dict[str, str]
    changes: list[str]

    def before(self, change: str) -> int:
        """The moment before a change."""
        return self.changes.index(change)


def words(inputs: Path, **changes: object) -> list[str]:
    """A command that writes `out` by Wanda, in several files, with batches and without checks that take long."""
    options: dict[str, object] = {
        "method": "wanda",
        "ratio": 0.5,
        "calib": inputs / "text.txt",
        "samples": 6,
        "seq_len": 32,
        "batch_size": 4,
        "max_shard_size": "100KB",
        "verify": "off",
    }
    source = changes.pop("source", inputs / "source")
    given = [f"--{name.replace('_', '-')}={value}" for name, value in (options | changes).items()]
    return ["prune", str(source), *given, "--no-eval-quick", "--json", "--output=out"]


@pytest.fixture
def prune(server: Server, inputs: Path, tmp_path: Path) -> Prune:
    """`prune(*flags, at=None, number=SIGKILL, cwd=tmp_path, **changed_options)` runs the command above."""

    def run(
        *flags: str, at: int | None = None, number: int = signal.SIGKILL, cwd: Path = tmp_path, **changes: object
    ) -> Ended:
        return server.run(*words(inputs, **changes), *flags, cwd=cwd, at=at, number=number)

    return run


@pytest.fixture(scope="module")
def whole(server: Server, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    for name in ("whole", "whole again"):  # the first run writes the cache of token ids, too
        folder = tmp_path_factory.mktemp(name)
        ended = server.run(*words(inputs), cwd=folder)
        assert ended.code == 0, ended.stderr
        assert ended.json()["resumed_blocks"] == 0
    changes = seen(ended, folder)
    last = changes.index(f"replace {STAGED}/export")
    assert 20 < last < len(changes), "the test sees the changes of the disk"
    return Whole(bytes_of(folder / "out"), changes[: last + 1])


@pytest.mark.parametrize(
    ("change", "resumed"),
    [
        (f"replace {STAGED}/blocks/00002.partial", 2),
        (f"replace {STAGED}/export/prunekit.json.partial", BLOCKS),
        (f"replace {STAGED}/export", BLOCKS),
    ],
    ids=["block", "export", "move"],
)
def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    change: str, resumed: int, prune: Prune, whole: Whole, tmp_path: Path
) -> None:
    assert prune(at=whole.before(change)).code == -signal.SIGKILL
    assert names(tmp_path) == [STAGED]
    again = prune()
    assert (again.code, again.json()["resumed_blocks"]) == (0, resumed)
    assert names(tmp_path) == ["out"] and bytes_of(tmp_path / "out") == whole.bytes


def test_no_moment_is_a_bad_one_to_be_killed(prune: Prune, whole: Whole, tmp_path: Path) -> None:
    for moment in range(0, len(whole.changes), 5):
        folder = tmp_path / str(moment)
        folder.mkdir()
        assert prune(at=moment, cwd=folder).code == -signal.SIGKILL
        assert names(folder) == [STAGED], whole.changes[moment]
        assert prune(cwd=folder).code == 0, whole.changes[moment]
        assert names(folder) == ["out"] and bytes_of(folder / "out") == whole.bytes, whole.changes[moment]


def test_a_run_that_is_killed_again_and_again_arrives(prune: Prune, whole: Whole, tmp_path: Path) -> None:
    second = whole.before(f"replace {STAGED}/blocks/00001.partial")
    for _ in range(3):
        assert prune(at=second).code == -signal.SIGKILL
    assert prune().code == 0
    assert bytes_of(tmp_path / "out") == whole.bytes


def test_a_kill_after_the_result_is_in_place_leaves_it_whole_and_the_next_run_free(
    prune: Prune, whole: Whole, tmp_path: Path
) -> None:
    assert prune(at=len(whole.changes) + 3).code == -signal.SIGKILL
    assert bytes_of(tmp_path / "out") == whole.bytes
    assert prune("--force", "--restart", ratio=0.6).code == 0
    (tmp_path / "fresh").mkdir()
    assert prune(cwd=tmp_path / "fresh", ratio=0.6).code == 0
    assert names(tmp_path) == ["fresh", "out"] and bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh" / "out")


def test_kill_9_from_outside_in_a_run_with_every_check(server: Server, inputs: Path, tmp_path: Path) -> None:
    command = [*words(inputs, method="sparsegpt", eval_windows=2, verify="auto"), f"--ppl={inputs / 'text.txt'}"]
    command.remove("--no-eval-quick")
    (tmp_path / "whole").mkdir()
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(server.run, *command, cwd=tmp_path / "whole")
        process = subprocess.Popen([sys.executable, "-m", "prunekit", *command], cwd=tmp_path, stderr=subprocess.PIPE)
        first = tmp_path / STAGED / "blocks" / "00000.safetensors"
        while not first.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate()
    assert whole.result().code == 0
    assert process.returncode == -signal.SIGKILL and names(tmp_path) == [STAGED, "whole"]
    again = server.run(*command, cwd=tmp_path)
    assert (again.code, again.stderr.count("error")) == (0, 0), again.stderr
    assert again.json()["resumed_blocks"] >= 1
    assert again.json()["perplexity"]["after"] > 0 and again.json()["verification"]["mode"] == "full"
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole" / "out")


@pytest.mark.parametrize(
    ("number", "code", "kind"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_run_says_how_it_goes_on(
    number: int, code: int, kind: str, prune: Prune, whole: Whole, tmp_path: Path
) -> None:
    ended = prune(at=whole.before(f"replace {STAGED}/blocks/00002.partial"), number=number)
    assert ended.code == code
    assert ended.json()["error"] == {"code": code, "kind": kind, "message": kind, "hint": KEPT}
    assert ended.stderr.endswith(f"error: {kind}\nhint: {KEPT}\n") and "Traceback" not in ended.stderr
    assert names(tmp_path) == [STAGED]
    again = prune()
    assert (again.code, again.json()["resumed_blocks"]) == (0, 2)
    assert bytes_of(tmp_path / "out") == whole.bytes


def test_another_recipe_is_refused_by_name(prune: Prune, whole: Whole, tmp_path: Path) -> None:
    prune(at=whole.before(f"replace {STAGED}/blocks/00001.partial"))
    changed: dict[str, dict[str, object]] = {
        "recipe.ratio (0.5, now 0.6)": {"ratio": 0.6},
        "recipe.method (wanda, now magnitude)": {"method": "magnitude"},
        "recipe.seed (0, now 1)": {"seed": 1},
        "calibration (": {"samples": 5},
        "batch_size (4, now 2)": {"batch_size": 2},
        "dtype (torch.float32, now torch.bfloat16)": {"dtype": "bfloat16"},
    }
    for difference, options in changed.items():
        refused = prune(**options)
        assert refused.code == 2
        assert f"{STAGED} holds an interrupted run that differs from this one in " in refused.stderr
        assert difference in refused.stderr and "--restart" in refused.json()["error"]["hint"]
    again = prune()
    assert (again.code, again.json()["resumed_blocks"]) == (0, 1), "the refusals left everything as it was"
    assert bytes_of(tmp_path / "out") == whole.bytes


def test_restart_drops_the_run_that_was_interrupted(prune: Prune, whole: Whole, tmp_path: Path) -> None:
    prune(at=whole.before(f"replace {STAGED}/blocks/00002.partial"))
    again = prune("--restart", ratio=0.6)
    assert (again.code, again.json()["resumed_blocks"]) == (0, 0)
    (tmp_path / "fresh").mkdir()
    assert prune(cwd=tmp_path / "fresh", ratio=0.6).code == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh" / "out")


def test_another_source_is_refused_by_file(prune: Prune, inputs: Path, whole: Whole, tmp_path: Path) -> None:
    source = shutil.copytree(inputs / "source", tmp_path / "source")
    prune(at=whole.before(f"replace {STAGED}/blocks/00002.partial"), source=source)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    refused = prune(source=source)
    assert refused.code == 2 and "source.config.json (" in refused.json()["error"]["message"]
    shutil.copy(inputs / "source" / "config.json", source)
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (source / "model.safetensors").write_bytes(weights)
    refused = prune(source=source)
    assert refused.code == 2 and "source.model.safetensors (" in refused.json()["error"]["message"]
    again = prune("--restart", source=source)
    assert (again.code, again.json()["resumed_blocks"]) == (0, 0)


def test_force_replaces_what_is_there_and_nothing_else_does(prune: Prune, whole: Whole, tmp_path: Path) -> None:
    target = old_model(tmp_path)
    before = bytes_of(target)
    assert prune().code == 2
    killed = prune("--force", at=whole.before(f"replace {STAGED}/export/prunekit.json.partial"))
    assert killed.code == -signal.SIGKILL and bytes_of(target) == before
    assert prune("--force").code == 0
    assert names(tmp_path) == ["out"] and bytes_of(target) == whole.bytes


def test_no_moment_of_replacing_a_folder_loses_what_was_in_it(prune: Prune, whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    before = bytes_of(old_model(tmp_path / "seen"))
    changes = seen(prune("--force", cwd=tmp_path / "seen"), tmp_path / "seen")
    first, last = changes.index("replace out/config.json"), changes.index(f"replace {STAGED}/replaced")
    assert last - first > len(before) + len(whole.bytes)
    for moment in range(first, last + 1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        target = old_model(folder)
        assert prune("--force", cwd=folder, at=moment).code == -signal.SIGKILL
        arrived = bytes_of(target) == whole.bytes
        assert arrived or bytes_of(target) == before or not (target / "config.json").exists(), changes[moment]
        if moment % 2:  # another run begins and does not get far
            ended = prune("--force", "--restart", cwd=folder, at=first - 10, number=signal.SIGINT)
            assert ended.code == 130 and bytes_of(target) == (whole.bytes if arrived else before), changes[moment]
        assert prune("--force", "--restart", cwd=folder).code == 0, changes[moment]
        assert names(folder) == ["out"] and bytes_of(target) == whole.bytes, changes[moment]


@pytest.mark.parametrize("flags", [(), ("--force",)])
@pytest.mark.parametrize("out", ["m", "./m", ".", "m/out"])
def test_the_source_is_never_the_target(
    out: str, flags: tuple[str, ...], server: Server, inputs: Path, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "source", tmp_path / "m")
    before = bytes_of(tmp_path)
    ended = server.run(*words(inputs, source="m")[:-1], f"--output={out}", *flags, cwd=tmp_path)
    assert ended.code == 2 and "the model that is read" in ended.json()["error"]["message"], ended.stdout
    assert f"-o {tmp_path / 'm'}-pruned" in ended.json()["error"]["hint"]
    assert bytes_of(tmp_path) == before and names(tmp_path) == ["m"]


def test_the_variable_for_force_deletes_no_more_than_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.cli import main

    monkeypatch.setenv("PRUNEKIT_FORCE", "1")
    command = ["prunekit", "prune", "sample", "--method=magnitude", "--ratio=0.5", f"--output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", command)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and names(tmp_path) == ["mine"]


class Disk:
    """A small disk at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        """Give it another size, or take the right to write away."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a small disk: mounting a tmpfs is not permitted here")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


def test_wherever_the_disk_is_full_the_run_goes_on_once_there_is_space(prune: Prune, whole: Whole, disk: Disk) -> None:
    size = 16
    while (ended := prune(cwd=disk.folder)).code:
        error = ended.json()["error"]
        assert (ended.code, error["kind"]) == (5, "resource"), (size, error)
        assert " full" in error["message"] or "no space left" in error["message"]
        assert "free" in error["hint"] and "Traceback" not in ended.stderr
        assert set(names(disk.folder)) <= {STAGED}
        size += 56
        disk.remount(f"size={size}k")
    assert size > 300, "the disk was full at several moments"
    assert ended.json()["resumed_blocks"] == BLOCKS
    assert names(disk.folder) == ["out"] and bytes_of(disk.folder / "out") == whole.bytes


def test_a_disk_without_room_for_the_hidden_states_is_full_like_any_other(prune: Prune, disk: Disk) -> None:
    ended = prune(cwd=disk.folder, offload="disk")
    assert ended.code == 5 and names(disk.folder) == []
    disk.remount("size=4m")
    assert prune(cwd=disk.folder, offload="disk").code == 0


def test_hidden_states_on_disk_go_with_the_run(prune: Prune, whole: Whole, tmp_path: Path) -> None:
    moment = whole.before(f"replace {STAGED}/blocks/00002.partial")
    assert prune(offload="disk", at=moment).code == -signal.SIGKILL
    assert (tmp_path / STAGED / "hidden").is_dir()
    assert prune(offload="disk", at=moment, number=signal.SIGINT).code == 130
    assert names(tmp_path) == [STAGED] and not (tmp_path / STAGED / "hidden").exists()


def test_a_full_disk_does_not_harm_what_is_to_be_replaced(prune: Prune, whole: Whole, disk: Disk) -> None:
    target = old_model(disk.folder)
    before = bytes_of(target)
    disk.remount("size=300k")
    assert prune("--force", cwd=disk.folder).code == 5
    assert bytes_of(target) == before
    disk.remount("size=4m")
    again = prune("--force", cwd=disk.folder)
    assert (again.code, again.json()["resumed_blocks"]) == (0, BLOCKS)
    assert bytes_of(target) == whole.bytes


def test_a_mount_such_as_dockers_is_a_target_like_any_other(
    server: Server, inputs: Path, whole: Whole, disk: Disk
) -> None:
    disk.remount("size=4m")
    run = partial(server.run, *words(inputs)[:-1], f"--output={disk.folder.name}", cwd=disk.folder.parent)
    assert run(at=whole.before(f"replace {STAGED}/blocks/00002.partial")).code == -signal.SIGKILL
    assert names(disk.folder) == [".prunekit"] and names(disk.folder.parent) == [disk.folder.name]
    again = run()
    assert again.code == 0 and again.json()["resumed_blocks"] >= 1, again.stderr
    assert bytes_of(disk.folder) == whole.bytes and names(disk.folder.parent) == [disk.folder.name]
    assert run().code == 2
    assert run("--force").code == 0 and bytes_of(disk.folder) == whole.bytes


def test_the_current_folder_can_be_the_target(server: Server, inputs: Path, whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    ended = server.run(*words(inputs)[:-1], "--output=.", cwd=tmp_path / "here")
    assert ended.code == 0 and bytes_of(tmp_path / "here") == whole.bytes
    assert names(tmp_path) == ["here"]


def test_a_place_that_cannot_be_written_is_an_input_error(prune: Prune, disk: Disk) -> None:
    disk.remount("ro")
    ended = prune(cwd=disk.folder)
    error = ended.json()["error"]
    assert (ended.code, error["hint"]) == (4, "choose another place with -o")
    assert error["message"].startswith("cannot write out: ") and names(disk.folder) == []


def test_a_file_above_the_target_is_an_input_error(server: Server, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ended = server.run(*words(inputs)[:-1], "--output=file/out", cwd=tmp_path)
    assert ended.code == 4 and "file/out" in ended.json()["error"]["message"], ended.stdout
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_input_error(prune: Prune, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert prune().code == 4 and names(tmp_path) == []
    finally:
        tmp_path.chmod(0o755)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def seen(ended: Ended, folder: Path) -> list[str]:
    """The changes of the disk by paths below the folder where the command ran."""
    return [change.replace(f"{folder}/", "") for change in ended.changes]


def old_model(folder: Path) -> Path:
    """A folder `out` that --force may replace."""
    target = folder / "out"
    target.mkdir()
    for name in ("config.json", "old.safetensors", "tokenizer.json"):
        (target / name).write_text("old")
    return target


@pytest.mark.parametrize("method", ["comp", "flap", "llm-pruner"])
def test_a_killed_run_that_narrows_blocks_goes_on_and_writes_the_same_bytes(
    method: str, server: Server, inputs: Path, tmp_path: Path
) -> None:
    settings = {
        "method": method,
        "ratio": 0.3,
        "layout": "per-layer",
        "width_multiple": 4,
    }
    for name in ("first", "whole"):  # the first run writes the cache of token ids, too
        (tmp_path / name).mkdir()
        ended = server.run(*words(inputs, **settings), cwd=tmp_path / name)
        assert ended.code == 0, ended.stderr
    moment = seen(ended, tmp_path / "whole").index(f"replace {STAGED}/blocks/00002.partial")
    assert server.run(*words(inputs, **settings), cwd=tmp_path, at=moment).code == -signal.SIGKILL
    again = server.run(*words(inputs, **settings), cwd=tmp_path)
    assert again.code == 0, again.stdout + again.stderr
    assert again.json()["resumed_blocks"] == 2
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole" / "out")
