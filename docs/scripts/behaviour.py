"""Record what some forty commands do, so that a change of the code can be shown to change none of it.

    python docs/scripts/behaviour.py record before.json --shared ../shared      # with the code as it was
    python docs/scripts/behaviour.py record after.json --shared ../shared       # with the code as it is now
    python docs/scripts/behaviour.py compare before.json after.json

Records exit codes, the sha256 of every weight file and config, and what `--json`, manifests and plans say, without
times, paths and host names. `--prunekit COMMAND` names another program than the one beside this Python. Commands run
with one thread and fixed seeds, so that bytes can be compared on one machine. `compare` prints every difference and
ends with 1 if there is one.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = "--calib sample --ppl sample --samples 8 --seq-len 128 --eval-windows 2 --offline"
ONE_ROUND = "--set allocator_options.rounds=1"
TRSP = "--set gate_steps=2 --set gate_tokens=512 --set rerank=2"
COMMANDS = {  # name -> (command after `prunekit`; each starts in one shared folder, in this order)
    # single weights
    "magnitude": f"prune stories -m magnitude -r 0.5 -o magnitude {SMALL}",
    "wanda": f"prune sample -m wanda -r 0.5 -o wanda {SMALL}",
    "wanda-2-4": f"prune stories -m wanda --pattern 2:4 -o wanda-2-4 {SMALL}",
    "sparsegpt": f"prune sample -m sparsegpt -r 0.5 -o sparsegpt {SMALL}",
    "sparsegpt-2-4": f"prune stories -m sparsegpt --pattern 2:4 -o sparsegpt-2-4 {SMALL} --offload disk",
    "alphapruning": f"prune sample -m alphapruning -r 0.7 -o alphapruning {SMALL}",
    "owl-mixed": f"prune stories -m wanda --allocator owl --pattern *:4 -r 0.6 -o owl-mixed {SMALL}",
    "measured": f"prune stories -m wanda --allocator measured -r 0.6 -o measured {SMALL} {ONE_ROUND}",
    "sparsegpt-alphapruning": f"prune stories -m sparsegpt --allocator alphapruning -r 0.6 -o sgpt-alpha {SMALL}",
    # whole blocks
    "layers": f"prune sample -m layers --set blocks=2,5 -o layers {SMALL} --verify streaming",
    "shortgpt": f"prune sample -m shortgpt -r 0.3 -o shortgpt {SMALL} --max-shard-size 2MB",
    "sleb": f"prune stories -m sleb -r 0.4 -o sleb {SMALL}",
    "trsp": f"prune stories -m trsp -r 0.2 -o trsp {SMALL} {TRSP}",
    "trsp-paper": f"prune stories -m trsp -r 0.2 -o trsp-paper {SMALL} {TRSP} --set stage2=paper",
    "trsp-fade": f"prune stories -m trsp -r 0.2 -o trsp-fade {SMALL} {TRSP} --set fade=0.5 --set train=neighbours",
    "trsp-sample": f"prune sample -m trsp -r 0.17 -o trsp-sample {SMALL} {TRSP}",
    # neurons
    "comp": f"prune sample -m comp -r 0.2 -o comp {SMALL}",
    "comp-per-layer": f"prune stories -m comp -r 0.3 --layout per-layer -o comp-per-layer {SMALL}",
    "flap-padded": f"prune stories -m flap -r 0.2 --layout padded -o flap-padded {SMALL}",
    "flap-allocated": f"prune stories -m flap -r 0.3 --layout per-layer --allocator owl -o flap-owl {SMALL}",
    "wanda-sp": f"prune stories -m wanda-sp -r 0.2 -o wanda-sp {SMALL}",
    "llm-pruner": f"prune stories -m llm-pruner -r 0.2 -o llm-pruner {SMALL}",
    # plans, other layouts, repeated runs
    "plan": f"plan stories -m shortgpt -r 0.4 -o plan.json {SMALL}",
    "plan-weights": f"plan stories -m wanda --allocator alphapruning -r 0.6 {SMALL} -q",
    "apply": "apply plan.json -o applied --offline",
    "export": "export comp-per-layer --layout padded -o relaid --offline",
    "repeat": "prune --from sleb/prunekit.json -o sleb-again --offline",
    "sweep": "sweep sweep.yaml stories -o swept --offline",
    # what is measured and shown
    "eval": "eval wanda comp --baseline sample --windows 2 --offline",
    "eval-tasks": "eval layers --baseline sample --ppl none --tasks sample --limit 8 --offline",
    "eval-gate": "eval magnitude --baseline stories --ppl sample --windows 2 --max-ppl-increase 1% --offline",
    "verify": "verify wanda --against sample --offline",
    "compare": "compare magnitude wanda sleb --offline",
    "inspect": "inspect stories --spectra --offline",
    "recipe-show": "recipe show --recipe recipe.yaml",
    "methods": "methods",
    # refusals
    "no-method": "prune stories -m nothing -r 0.5",
    "bad-ratio": "prune stories -m wanda -r 1.5",
    "needless-allocator": "prune stories -m shortgpt --allocator owl -r 0.3",
    "no-model": "prune nowhere/at-all -m wanda -r 0.5 --offline",
    "target-exists": f"prune stories -m magnitude -r 0.5 -o wanda {SMALL}",
    "bad-option": "prune stories -m sparsegpt -r 0.5 --set blocksize=0",
}
KILLED = {"killed": (f"prune sample -m wanda -r 0.5 -o killed {SMALL}", "blocks/00004.safetensors")}
RECIPE = (
    "method: wanda\nratio: 0.5\ncalibration: {source: sample, samples: 8, seq_len: 128}\n"
    "evaluation: {set: sample, windows: 2}\n"
)
SWEEP = RECIPE.replace("method: wanda", "method: [magnitude, shortgpt]").replace("ratio: 0.5", "ratio: [0.3, 0.5]")
VARYING = re.compile(r"seconds|created|time|host|machine|platform|python|speed|memory|version|threads")


def main() -> int:
    """Record or compare, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    record = modes.add_parser("record")
    record.add_argument("file", type=Path)
    record.add_argument("--shared", type=Path, required=True, help="folder that holds data/models/stories260K")
    record.add_argument("--prunekit", default=str(Path(sys.executable).with_name("prunekit")))
    record.add_argument("--only", nargs="*", help="names of commands; what they read must be among them")
    compared = modes.add_parser("compare")
    compared.add_argument("before", type=Path)
    compared.add_argument("after", type=Path)
    chosen = parser.parse_args()
    if chosen.mode == "record":
        found = recorded(chosen.prunekit, chosen.shared / "data/models/stories260K", chosen.only)
        chosen.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    before, after = (json.loads(file.read_text(encoding="utf-8")) for file in (chosen.before, chosen.after))
    differing = list(differences(before, after))
    print("\n".join(differing) or f"the same: {len(before)} commands")
    return bool(differing)


def recorded(prunekit: str, stories: Path, only: list[str] | None) -> dict[str, Any]:
    """What every command did, by its name."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        shutil.copytree(stories, work / "stories", copy_function=shutil.copyfile)
        (work / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        (work / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(work / "cache"),
        }
        runner = Runner(prunekit, work, environment)
        found = {}
        for label, command in COMMANDS.items():
            if not only or label in only:
                found[label] = runner.run(command)
                print(f"{label}: exit {found[label]['exit']}", file=sys.stderr)
        for label, (command, until) in KILLED.items():
            if not only or label in only:
                runner.kill(command, until)
                found[label] = runner.run(command)
                print(f"{label}: exit {found[label]['exit']} after a kill", file=sys.stderr)
        return found


class Runner:
    """Runs commands in one folder and describes what they leave there."""

    def __init__(self, prunekit: str, work: Path, environment: dict[str, str]) -> None:
        self.prunekit, self.work, self.environment = prunekit, work, environment
        self.known: set[Path] = set()

    def run(self, command: str) -> dict[str, Any]:
        """Exit code, standard output, and the files that are new."""
        done = subprocess.run(self._words(command, "--json"), cwd=self.work, env=self.environment, capture_output=True)
        self.known |= {file for file in self._files() if {"cache", "measured"} & set(file.parts)}  # named by paths
        new = sorted(set(self._files()) - self.known)
        self.known |= set(new)
        text = done.stdout.decode()
        files = {str(file.relative_to(self.work)): self._described(file) for file in new}
        return {"exit": done.returncode, "output": self._plain(text), "files": files}

    def kill(self, command: str, until: str) -> None:
        """Start a command and kill it as soon as its staging folder holds a file."""
        process = subprocess.Popen(
            self._words(command, "--json"), cwd=self.work, env=self.environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and not list(self.work.glob(f".*.prunekit/{until}")):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _words(self, command: str, *more: str) -> list[str]:
        return [self.prunekit, *command.split(), *more]

    def _files(self) -> Iterator[Path]:
        return (file for file in self.work.rglob("*") if file.is_file())

    def _described(self, file: Path) -> Any:
        """The content of what holds decisions, the hash of what holds a model; of the rest, that it is there."""
        if file.name in ("prunekit.json", "plan.json", "sweep.json"):
            return self._plain(file.read_text(encoding="utf-8"))
        if file.suffix in (".safetensors", ".json", ".model", ".py"):
            return hashlib.sha256(file.read_bytes()).hexdigest()
        return "there"

    def _plain(self, text: str) -> Any:
        """A text, or the JSON in it, without what changes from run to run."""
        text = text.replace(str(self.work), "WORK")
        try:
            return _without_varying(json.loads(text))
        except ValueError:
            return text


def _without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if not VARYING.search(key)}
        return {key: _without_varying(part) for key, part in kept.items()}
    return [_without_varying(part) for part in value] if isinstance(value, list) else value


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """A line for every value that differs, with where it stands."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            where = f"{place} / {key}" if place else key
            if key not in before or key not in after:
                yield f"{where}: {'only after' if key in after else 'only before'}: {_short((after | before)[key])}"
            else:
                yield from differences(before[key], after[key], where)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{place}[{number}]")
    elif before != after:
        yield f"{place}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:160]} ..."


if __name__ == "__main__":
    sys.exit(main())
