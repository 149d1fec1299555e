"""Prove, in a fresh process, that a folder is the model that was meant.

    python -m prunekit.export.verify FOLDER [--expect probe.safetensors] [--mode auto|full|streaming]

The process loads the folder as any user would, runs the checks of `prunekit.export.checks` and writes one line of
JSON. It shares neither memory nor imported modules with the run that wrote the folder.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import psutil
import torch
from pydantic import ValidationError

from prunekit import launch
from prunekit.blockwise.stream import logits
from prunekit.errors import InputError, PrunekitError, ResourceError, VerificationError
from prunekit.export.checks import (
    NEW_TOKENS,
    OUT_OF_MEMORY,
    PROMPT_TOKENS,
    Check,
    Generated,
    Headers,
    Probe,
    check_actions,
    check_files,
    check_generation,
    check_loads,
    check_logits,
    check_manifest,
    tolerance,
)
from prunekit.model import modeling_file
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel, choose_device, choose_dtype
from prunekit.plan import Frozen

HEADROOM = 1.2  # weights, and a fifth more for activations, the cache and a tensor on its way from disk
CGROUP = Path("/sys/fs/cgroup")


class Verification(Frozen):
    """Which checks ran on a folder, how, and what they found.

    `full` loaded the whole model; `streaming` compared what is stored with what the model wants and computed
    logits one block at a time, so it says nothing of generation. `generated` continues the probe's first
    tokens greedily.
    """

    mode: Literal["full", "streaming"]
    checks: tuple[Check, ...]
    generated: Generated | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def verify(
    folder: Path,
    expect: Path | None = None,
    mode: str = "auto",
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Verification:
    """Check a model folder in a fresh process, against the probe in `expect` when there is one.

    `auto` is `full` when the model fits in memory, else `streaming`. Device and dtype should be those with
    which the probe was recorded. Raises VerificationError naming what differs, ResourceError when memory does
    not suffice, and what `Checkpoint.open` raises for a folder that prunekit cannot read.
    """
    words = [str(folder), "--mode", mode, "--device", device, "--dtype", dtype]
    words += ["--expect", str(expect)] if expect else []
    words += ["--trust-remote-code"] if trust_remote_code else []
    verification = _read_answer(launch.run_module("prunekit.export.verify", words))
    if not verification.passed:
        failed = [f"{check.name}: {check.detail}" for check in verification.checks if not check.passed]
        raise VerificationError(
            f"{folder} is not the model that was meant: {'; '.join(failed)}",
            hint=f"prunekit verify {folder} --against MODEL names the tensors that differ from a model's",
        )
    return verification


def inspect_folder(
    folder: Path,
    expect: Path | None = None,
    mode: str = "auto",
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Verification:
    """Run the checks in this process; see `verify`."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", hint="give the folder that prunekit prune wrote")
    files, tensors = check_files(folder)
    if not files.passed:
        return Verification(mode="streaming" if mode == "streaming" else "full", checks=(files,))
    checkpoint = Checkpoint.open(folder)
    trust_remote_code |= modeling_file.is_ours(folder, checkpoint.config)
    place = choose_device(device)
    computed = choose_dtype(dtype, place, checkpoint)
    probe = Probe.read(expect) if expect else None
    if mode == "auto":
        mode = "full" if fits(tensors, computed, place) else "streaming"
    if mode == "streaming":
        model = (checkpoint, str(place), str(computed).removeprefix("torch."), trust_remote_code)
        return Verification(mode="streaming", checks=(files, *_streaming(model, tensors, probe)))
    options = {"dtype": computed, "trust_remote_code": trust_remote_code}
    options |= {} if place.type == "cpu" else {"device_map": {"": place}}
    checks, generated = _full(folder, tensors, probe, options)
    return Verification(mode="full", checks=(files, *checks), generated=generated)


def fits(tensors: Headers, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model of these tensors, computed in this dtype, can be loaded whole into what is free now."""
    numbers = sum(int(torch.Size(shape).numel()) for _, shape in tensors.values())
    return HEADROOM * numbers * dtype.itemsize <= free_memory(device)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device; on a CPU within the limit of the container, too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    free = psutil.virtual_memory().available
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _full(folder: Path, tensors: Headers, probe: Probe | None, options: dict) -> tuple[list[Check], Generated | None]:
    loads, model = check_loads(folder, tensors, **options)
    checks = [loads, *_manifest(folder)]
    if model is None or not loads.passed:
        return checks, None
    checks += filter(None, [check_actions(folder, model)])
    config = model.config.get_text_config()
    known = probe or Probe.made_up(config.vocab_size)
    if known.logits is not None:
        with torch.no_grad():
            found = model(known.ids.to(model.device), use_cache=False).logits[0]
        checks.append(check_logits(found.cpu(), known.logits, tolerance(model.dtype)))
    room = (getattr(config, "max_position_embeddings", None) or 2048) - NEW_TOKENS
    generation, generated = check_generation(model, known.ids[:, : max(1, min(PROMPT_TOKENS, room))])
    return [*checks, generation], generated


def _streaming(model: tuple[Checkpoint, str, str, bool], tensors: Headers, probe: Probe | None) -> Iterator[Check]:
    checkpoint, device, dtype, trust_remote_code = model
    loads, _ = check_loads(checkpoint.folder, tensors, device_map="meta", trust_remote_code=trust_remote_code)
    yield loads
    yield from _manifest(checkpoint.folder)
    yield from filter(None, [check_actions(checkpoint.folder, None)])
    if loads.passed and probe is not None and probe.logits is not None:
        prunable = PrunableModel.open(checkpoint, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        found = next(iter(logits(prunable, probe.ids)))[0]
        yield check_logits(found.cpu(), probe.logits, tolerance(prunable.dtype))


def _manifest(folder: Path) -> list[Check]:
    check = check_manifest(folder)
    return [check] if check else []


def _read_answer(child: subprocess.CompletedProcess[str]) -> Verification:
    """What the process answered, or the error it ended with."""
    last = (child.stdout.strip().splitlines() or [""])[-1]
    try:
        return Verification.model_validate_json(last)
    except ValidationError:
        pass
    if last.startswith('{"error"'):
        raise _error(json.loads(last)["error"])
    if child.returncode == -signal.SIGKILL:
        raise ResourceError(
            "the verification was killed, most likely because memory ran out",
            hint="repeat the command with --verify streaming, which holds one block in memory",
        )
    said = " | ".join(line.strip() for line in child.stderr.strip().splitlines()[-3:])
    raise VerificationError(f"the verification ended with code {child.returncode} and no answer: {said}")


def _error(found: dict) -> PrunekitError:
    """The error that the process raised, as the same class."""
    classes = [PrunekitError]
    for known in classes:
        classes += known.__subclasses__()
    kind = next((known for known in classes if known.kind == found["kind"]), PrunekitError)
    return kind(found["message"], hint=found["hint"])


def _number(path: Path) -> int | None:
    """A whole number from a file of the kernel; None when there is none ("max" means no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def main(words: Sequence[str] | None = None) -> int:
    """The process's own command line; its one line on stdout is a Verification or an error, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m prunekit.export.verify", description="Check a model folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expect", type=Path, help="safetensors file with input_ids and logits")
    parser.add_argument("--mode", choices=("auto", "full", "streaming"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = vars(parser.parse_args(words))
    try:
        with redirect_stdout(sys.stderr):  # whatever a library prints, stdout carries only the answer
            found = inspect_folder(**arguments)
        answer, code = found.model_dump_json(), 0 if found.passed else VerificationError.exit_code
    except OUT_OF_MEMORY as error:
        problem = ResourceError(f"memory ran out during verification: {error}", hint="repeat with --verify streaming")
        answer, code = json.dumps(problem.as_json()), problem.exit_code
    except PrunekitError as error:
        answer, code = json.dumps(error.as_json()), error.exit_code
    sys.stdout.write(answer + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
