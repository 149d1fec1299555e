"""Several processes do what one does: the same plan, the same training, one folder; and when one ends, all do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from typer.testing import CliRunner, Result

from prunekit import distributed, launch
from prunekit.cli.app import app
from prunekit.errors import InputError, UsageError
from prunekit.model.device import choose_device
from prunekit.run import ranks
from prunekit.text.local import read_stdin
from prunekit.train.fsdp import parts
from shared_training import trained
from training_runs import weights

pytestmark = pytest.mark.slow

Model = Callable[..., Path]
LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
DYING = """
import os, signal
from prunekit.cli import main
from prunekit_methods.trsp import TRSP

done = TRSP._round

def round(self, ctx, loss, free, gone):
    if os.environ["RANK"] == "1" and gone:
        os.kill(os.getpid(), signal.SIGKILL)
    return done(self, ctx, loss, free, gone)

TRSP._round = round
main()
"""


@pytest.fixture
def words(tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that prunes two of five blocks by trsp, in an empty working folder; what is missing is `-o`."""
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    options = {"gate_steps": 3, "rerank": 2, "epochs": 1, "batch": 3, "checkpoint_every": 1}
    source = tiny_llama(num_hidden_layers=5, initializer_range=0.3)
    text = ["--calib", "../text.txt", "--samples", "6", "--seq-len", "32", "--batch-size", "4", "--no-eval-quick"]
    return ["prune", str(source), "-m", "trsp", "-r", "0.4", *text, *given(options), "-q"]


def given(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in ("--set", f"{name}={value}")]


def torchrun(*program: object) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*launcher, *map(str, program)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def alone(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def evidence(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "prunekit.json").read_text())["plan"]["evidence"]


def check_same_plan(folder: str, other: str) -> None:
    one, two = evidence(folder), evidence(other)
    assert one["order"] == two["order"] and len(one["order"]) == 2
    for first, second in zip(one["rounds"], two["rounds"], strict=True):
        assert first["losses"] == pytest.approx(second["losses"], rel=1e-6)
        assert torch.allclose(torch.tensor(first["gates"]), torch.tensor(second["gates"]), atol=1e-6)
        assert dict(first["measured"]) == pytest.approx(dict(second["measured"]), rel=1e-6)


def test_two_processes_make_one_folder_with_the_plan_of_one(words: list[str]) -> None:
    from transformers import AutoModelForCausalLM

    assert alone(*words, "-o", "one").exit_code == 0
    ended = torchrun("-m", "prunekit", *words, "-o", "two")
    assert (ended.returncode, ended.stdout) == (0, "two\n"), ended.stderr
    check_same_plan("one", "two")
    one, two = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(tensor, two[name], atol=1e-4) for name, tensor in one.items())
    assert sorted(path.name for path in Path().iterdir()) == ["one", "two"]


def test_a_run_with_a_killed_process_ends_and_goes_on_from_what_is_kept(words: list[str], tmp_path: Path) -> None:
    words += ["--batch-size", "8", "--verify", "off"]  # one batch: the second process has none
    (tmp_path / "dying.py").write_text(DYING)
    ended = torchrun(tmp_path / "dying.py", *words, "-o", "two")
    assert ended.returncode != 0 and ended.stdout == ""
    assert "the finished blocks are kept; the same command continues from them" in ended.stderr
    rounds = json.loads(Path(".two.prunekit", "work", "gates.json").read_text())
    assert not Path("two").exists() and len(rounds) == 1
    again = torchrun("-m", "prunekit", *words, "-o", "two")
    assert (again.returncode, again.stdout) == (0, "two\n"), again.stderr
    assert evidence("two")["rounds"][0] == rounds[0]
    assert alone(*words, "-o", "one").exit_code == 0
    check_same_plan("one", "two")


def test_training_that_is_shared_is_the_training_of_one_process_also_when_it_was_stopped(
    tiny_llama: Model, tmp_path: Path
) -> None:
    source = tiny_llama(vocab_size=321, tie_word_embeddings=True)  # rows that two processes cannot share evenly
    ended = torchrun(Path(__file__).parents[1] / "support" / "shared_training.py", source, tmp_path)
    assert ended.returncode == 0, ended.stderr
    one, norms = trained(source)
    (shared, notes), (resumed, later) = read(tmp_path / "whole.safetensors"), read(tmp_path / "resumed.safetensors")
    assert notes["norms"] == pytest.approx(norms, rel=1e-4), "the gradient is another one"
    assert torch.allclose(torch.tensor(notes["history"]), torch.tensor(one.history), rtol=1e-4)
    assert all(torch.allclose(tensor, shared[name], atol=1e-4) for name, tensor in weights(one).items())
    assert later == {"norms": notes["norms"][2:], "history": notes["history"]}, "it was not taken up after update 2"
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in shared.items())


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        notes = {key: json.loads(text) for key, text in file.metadata().items()}
        return {key: file.get_tensor(key) for key in file.keys()}, notes  # noqa: SIM118


def test_a_method_that_cannot_share_its_work_is_refused_and_the_first_process_says_so_on_stdout(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["wanda" if word == "trsp" else word for word in words if "=" not in word and word != "--set"]
    for rank, said in (("0", "error: "), ("1", "error: process 2 of 2: ")):
        monkeypatch.setattr(os, "environ", os.environ | LAUNCHED | {"RANK": rank})
        refused = alone(*words, "-o", "out", "--json")
        assert refused.exit_code == 2
        assert f"{said}wanda works in one process, and 2 were started" in refused.stderr
        assert "hint: start it without torchrun" in refused.stderr
        assert bool(refused.stdout) == (rank == "0")
    assert not list(Path().iterdir())


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second of two, as a launcher says it."""
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second")
def test_a_command_that_shares_no_work_is_run_by_the_first_process_alone() -> None:
    ended = alone("methods")
    assert (ended.exit_code, ended.output) == (0, "")


@pytest.mark.usefixtures("second")
def test_each_process_takes_the_card_of_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.empty(1))
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.usefixtures("second")
def test_several_processes_cannot_all_read_standard_input() -> None:
    with pytest.raises(InputError, match="2 processes cannot all read standard input"):
        read_stdin()
    ended = alone("prune", "-", "-m", "trsp", "-r", "0.5")
    assert (ended.exit_code, ended.stdout) == (4, "")


@pytest.mark.usefixtures("second")
@pytest.mark.fresh
def test_the_process_that_verifies_knows_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(subprocess, "run", lambda *_, env, **__: seen.update(env))
    launch.run_module("prunekit.export.verify", ["folder"])
    assert seen.keys() >= {"PATH"} and not seen.keys() & {*LAUNCHED, "MASTER_PORT", "TORCHELASTIC_RUN_ID"}


def test_a_process_that_found_another_model_than_the_first_says_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "from_first", lambda _: {"source": {"a": "1"}, "dtype": "float32"})
    ranks._compare({"source": {"a": "1"}, "dtype": "float32"})
    with pytest.raises(InputError, match=r"^source differs from what the first process found"):
        ranks._compare({"source": {"a": "2"}, "dtype": "float32"})


@pytest.mark.usefixtures("second")
def test_processes_cannot_share_work_on_a_device_without_a_way_to_exchange_it() -> None:
    with pytest.raises(UsageError, match="processes cannot share work on mps"), distributed.joined(torch.device("mps")):
        pass


@pytest.mark.parametrize(("rows", "size", "most"), [(8, 1, 3), (8, 2, 2), (3, 2, 1), (5, 3, 2), (2, 4, 8)])
def test_processes_pass_equally_many_parts_and_every_row_counts_once(
    rows: int, size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, found = torch.arange(rows)[:, None], []
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setattr(distributed, "_size", size)
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        found.append(list(parts(ids, most)))
    assert len({len(each) for each in found}) == 1
    assert all(0 < len(part) <= most for each in found for part, _ in each)
    assert sorted(row for each in found for part, counts in each if counts for row in part.flatten().tolist()) == list(
        range(rows)
    )


def test_a_process_that_nobody_launched_hands_back_what_it_is_given() -> None:
    assert (distributed.started(), distributed.rank(), distributed.size(), distributed.speaker()) == (1, 0, 1, "")
    numbers, rows = [0.1, 0.2], torch.arange(4)
    assert distributed.summed(numbers) is numbers
    assert distributed.share(rows) is rows
    assert distributed.from_first(rows) is rows
