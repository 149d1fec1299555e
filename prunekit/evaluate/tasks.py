"""Accuracy on lm-eval's tasks: by name, by the path of a task file, and the built-in `sample`, which needs no network.

lm-eval does all of it; here it is asked, and what it answers becomes rows.
"""

import difflib
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from prunekit.errors import InputError, UsageError
from prunekit.evaluate import sample_task
from prunekit.evaluate.rows import Accuracy, plain
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.modeling_file import is_ours
from prunekit.model.skeleton import load_whole
from prunekit.progress import Progress, Silent

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

INSTALL = "pip install 'prunekit[eval]'"
NO_METRIC = ("alias", "name", "sample_len", "sample_count")


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks, and how they are asked; None leaves a setting to the task."""

    names: Sequence[str]  # lm-eval's tasks, groups and tags; paths of task files; `sample`
    include: Sequence[Path] = ()  # folders with more task files
    limit: int | None = None  # documents of each task
    few_shot: int | None = None
    batch_size: int = 1


@dataclass(frozen=True)
class Tasks:
    """Tasks that were found, with their data."""

    options: TaskOptions
    specs: list[str] = field(repr=False)
    manager: "TaskManager" = field(repr=False)
    names: frozenset[str]

    @classmethod
    def find(cls, options: TaskOptions, folder: Path) -> "Tasks":
        """Find the tasks and load their data, before any model is; the built-in one is written into `folder`.

        Raises UsageError without lm-eval and for a task that does not exist, InputError for data that cannot be had.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise UsageError("tasks are run by lm-eval, which is not installed", hint=INSTALL)
        specs = [_spec(name, folder) for name in options.names]
        manager = _manager(specs, options.include)
        _refuse_unknown(specs, manager)
        found = _loaded(specs, manager)
        return cls(options, specs, manager, frozenset(found["tasks"]) | frozenset(found["groups"]))

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a score beside the model: lm-eval, the settings, and the content of task files."""
        folders = [path for folder in self.options.include for path in sorted(folder.rglob("*")) if path.is_file()]
        files = [Path(spec) for spec in self.specs if Path(spec).is_file()]
        return {
            "lm_eval": version("lm_eval"),
            "names": [name for name in self.options.names if not Path(name).is_file()],
            "limit": self.options.limit,
            "few_shot": self.options.few_shot,
            "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*files, *folders)],
        }

    def run(
        self,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        trust_remote_code: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Accuracy, ...]:
        """What a model folder scores, every metric of every task; the model is loaded whole."""
        from lm_eval import evaluator

        simple_evaluate: Any = evaluator.simple_evaluate
        model = _model(folder, device, dtype, self.options.batch_size, trust_remote_code, progress or Silent())
        with _no_survey(evaluator):
            found = simple_evaluate(
                model=model,
                tasks=list(self.specs),
                task_manager=self.manager,
                num_fewshot=self.options.few_shot,
                limit=self.options.limit,
                log_samples=False,
            )
        return accuracies(found or {})


def accuracies(found: Any) -> tuple[Accuracy, ...]:
    """lm-eval's results as rows: `acc,none` is the metric `acc`, another filter than none stays in the name."""
    rows: list[Accuracy] = []
    for task, metrics in found.get("results", {}).items():
        documents = found.get("n-samples", {}).get(task, {}).get("effective")
        version = found.get("versions", {}).get(task)
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if key in NO_METRIC or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{chosen}")
            rows.append(
                Accuracy(
                    task=task,
                    metric=metric if chosen == "none" else key,
                    value=plain(value),
                    stderr=plain(error) if isinstance(error, int | float) else None,
                    documents=documents,
                    few_shot=found.get("n-shot", {}).get(task),
                    version=None if version is None else str(version),
                )
            )
    return tuple(rows)


@contextmanager
def _no_survey(evaluator: Any) -> Iterator[None]:
    """Keep lm-eval from asking git and the system what is installed: it takes seconds, and git complains aloud."""
    known = evaluator.get_git_commit_hash, evaluator.add_env_info
    evaluator.get_git_commit_hash, evaluator.add_env_info = (lambda: None), (lambda results: None)
    try:
        yield
    finally:
        evaluator.get_git_commit_hash, evaluator.add_env_info = known


def _spec(name: str, folder: Path) -> str:
    """What lm-eval is asked for: the name, or the path of a file."""
    if name == sample_task.NAME:
        return str(sample_task.write(folder))
    if not name.endswith((".yaml", ".yml")):
        return name
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"no such task file: {name}", hint="give the path of an lm-eval task in YAML")
    return str(path.resolve())


def _manager(specs: Sequence[str], include: Sequence[Path]) -> "TaskManager":
    """An index of tasks; lm-eval's own, which takes long to read, only where something else than a file is named."""
    from lm_eval.tasks import TaskManager

    for path in include:
        if not path.is_dir():
            raise InputError(f"--include-path {path} is not a folder", hint="give a folder with lm-eval task files")
    own = TaskManager(include_path=[str(path) for path in include] or None, include_defaults=False)
    if all(Path(spec).is_absolute() or spec in own.all_tasks for spec in specs):
        return own
    return TaskManager(include_path=[str(path) for path in include] or None)


def _refuse_unknown(specs: Sequence[str], manager: "TaskManager") -> None:
    known = manager.all_tasks
    for spec in specs:
        if not Path(spec).is_absolute() and spec not in known:
            near = difflib.get_close_matches(spec, [*known, sample_task.NAME], n=1, cutoff=0.6)
            raise UsageError(
                f"lm-eval has no task {spec!r}",
                hint=f"did you mean {near[0]}?"
                if near
                else "lm-eval ls tasks lists them; --include-path adds your own",
            )


def _loaded(specs: Sequence[str], manager: "TaskManager") -> Any:
    """The tasks with their data; raises InputError for data that cannot be had."""
    try:
        return manager.load(list(specs))
    except Exception as error:  # a task file can be wrong, and data missing, in as many ways as there are tasks
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"the tasks {', '.join(_short(spec) for spec in specs)} cannot be loaded: {text}",
            hint="tasks of lm-eval fetch their data from the hub; --tasks sample needs no network",
        ) from error


def _short(spec: str) -> str:
    return Path(spec).name if Path(spec).is_absolute() else spec


def _model(
    folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int, trust_remote_code: bool, progress: Progress
) -> Any:
    """lm-eval's own wrapper of a model folder, which tells how far it is instead of drawing a bar."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    plain_model: Any = HFLM

    class Answers(CacheHook):
        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            progress.step()

    class Listening(plain_model):
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            progress.stage("tasks", len(requests))
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            progress.stage("tasks", len(requests))
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            progress.stage("tasks", len(requests))
            return super().generate_until(requests, disable_tqdm=True)

    checkpoint, source = Checkpoint.open(folder), {"pretrained": str(folder), "trust_remote_code": trust_remote_code}
    if is_ours(folder, checkpoint.config):  # lm-eval would have to trust the tokenizer along with the model
        loaded: Any = load_whole(checkpoint, dtype=dtype).to(device)  # type: ignore[arg-type]
        source = {"pretrained": loaded, "tokenizer": AutoTokenizer.from_pretrained(folder)}
    made = Listening(**source, device=str(device), dtype=dtype, batch_size=batch_size)
    made.set_cache_hook(Answers(None))
    return made
