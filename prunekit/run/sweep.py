"""A grid of runs: each cell is an ordinary model folder, and what is done is not done again.

OUT/                    the folder of the sweep
    sweep.json          the table, once every cell has had its turn
    dense/              perplexities of the dense models, each measured once for all cells
    measured/           what was measured of each cell for the table, and of the dense model: a file for each figure
    NAME/               the model folder of one cell, and .NAME.prunekit beside it while it is at work
    lock                held by the sweep that is at work

A finished cell is known by its manifest: same source, recipe, calibration tokens, versions. A cell that was interrupted
goes on from its staging folder, as any run does. A cell is timed in a session of its own with the dense model
(`evaluate.session`), which is kept once it is whole.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prunekit.compare.measure import Measurement, refuse_senseless
from prunekit.compare.table import Runs, judged, table_of
from prunekit.errors import PrunekitError, ResourceError, UsageError
from prunekit.evaluate.rows import Verdict
from prunekit.evaluate.side_by_side import Questions
from prunekit.export.manifest import MANIFEST, Manifest, Source, changes
from prunekit.files import locked, storage_errors, write_atomically
from prunekit.formatting import plural
from prunekit.model.hub import locate
from prunekit.model.loading import Opening
from prunekit.plan import Frozen
from prunekit.progress import Progress, Silent
from prunekit.recipe.command import portable
from prunekit.recipe.grid import Cell
from prunekit.recipe.recipe import Recipe
from prunekit.run import pipeline
from prunekit.run.job import Job
from prunekit.run.plug_ins import PlugIns
from prunekit.run.quick_perplexity import QuickPerplexity
from prunekit.run.workers import run_all
from prunekit.versions import versions

RESULT, DENSE, LOCK, MEASURED = "sweep.json", "dense", "lock", "measured"
OWN = (RESULT, DENSE, LOCK, MEASURED)
State = Literal["done", "kept", "failed"]


class CellResult(Frozen):
    """What became of one cell."""

    name: str
    state: State = Field(description="done now, kept from an earlier sweep, or failed.")
    error: str | None = Field(default=None, description="Why it failed.")
    code: int = Field(default=0, description="The exit code that `prune` would have ended with.")


class Sweep(Frozen):
    """What `prunekit sweep --json` prints, and OUT/sweep.json holds."""

    schema_version: Literal[1] = 1
    output: str = Field(description="The folder of the sweep.")
    cells: tuple[CellResult, ...]
    table: Runs = Field(description="The cells that are done.")
    gates: tuple[Verdict, ...] = Field(default=(), description="What became of the recipe's limits in these.")

    @property
    def failed(self) -> list[CellResult]:
        """The cells that could not be run."""
        return [cell for cell in self.cells if cell.state == "failed"]


@dataclass(frozen=True)
class Options:
    """What every cell of a sweep is run with."""

    output: Path
    force: bool = False
    restart: bool = False
    offline: bool = False

    @property
    def dense(self) -> Path:
        """Where perplexities of dense models are kept."""
        return self.output / DENSE

    def order(self, cell: Cell) -> dict[str, Any]:
        """A cell as it is told to a worker."""
        more = {"force": self.force, "restart": self.restart, "offline": self.offline}
        return {"recipe": cell.recipe.model_dump(mode="json"), "output": self.output / cell.name, **more}


def sweep(
    cells: Sequence[Cell],
    options: Options,
    *,
    jobs: int = 1,
    questions: Questions | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Run the cells that are not done yet, `jobs` at a time, and put all of them into one table.

    The table holds what the manifests say, the counted work per token, and the answers to `questions`. A cell that
    cannot be run does not stop the others. Raises UsageError when OUT cannot hold a sweep or holds another cell's
    result, or what is asked of the cells cannot be measured, ResourceError when memory or disk run out, and what ends
    a run from outside.
    """
    _check_output(options.output)
    if questions and questions.asked:
        refuse_senseless(questions, (str(cell.recipe.model) for cell in cells))
    with storage_errors(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    listener, asked = progress or Silent(), questions or Questions(opening=Opening(offline=options.offline))
    with locked(options.output / LOCK, options.output):
        _forget(options)
        found = _run_cells(cells, options, jobs, listener)
        done = {cell.name: options.output / cell.name for cell in cells if found[cell.name].state != "failed"}
        dense = {cell.name: str(cell.recipe.model) for cell in cells if cell.name in done}
        measurement = Measurement(done, dense, options.output / MEASURED, listener)
        with _keeping("cells and what was measured of them"):
            known = measurement.answers(asked, count=True)
        table = table_of(done, known.rows, known.baseline, known.work)
        limits = {cell.name: cell.recipe.gates for cell in cells}
        gates = tuple(verdict for run in table.runs for verdict in judged(run, limits[run.name]))
        result = Sweep(output=str(options.output), cells=tuple(found.values()), table=table, gates=gates)
        return write(result, options.output)


def _run_cells(cells: Sequence[Cell], options: Options, jobs: int, progress: Progress) -> dict[str, CellResult]:
    """What became of every cell, by name; those that are done are kept."""
    sources: dict[Path, dict[str, str]] = {}
    found = {cell.name: CellResult(name=cell.name, state="kept") for cell in cells}
    unfinished = []
    for cell in cells:
        state = _prepare(cell, options, progress, sources, alone=jobs == 1)
        if state == "open":
            unfinished.append(cell)
        elif isinstance(state, PrunekitError):
            found[cell.name] = _failed(cell.name, state)
    with _keeping("finished cells"):
        if kept := len(cells) - len(unfinished) - sum(cell.state == "failed" for cell in found.values()):
            progress.note(f"{kept} of {plural(len(cells), 'cell')} finished before, and kept")
        for name, answer in _run(unfinished, options, jobs, progress):
            found[name] = answer
    return found


@contextmanager
def _keeping(what: str) -> Iterator[None]:
    """Say of whatever ends a sweep in its midst what is finished and kept (see `cli.failures`)."""
    try:
        yield
    except BaseException as error:
        vars(error)["kept"] = what
        raise


def write(result: Sweep, output: Path) -> Sweep:
    """Keep the result in the sweep's folder; hands it back."""
    with storage_errors(output):
        write_atomically(output / RESULT, result.model_dump_json(indent=2) + "\n")
    return result


def _check_output(output: Path) -> None:
    """Raise UsageError for a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a folder", hint="choose another place with -o")
    if not output.is_dir() or any((output / name).exists() for name in OWN):
        return
    if others := sorted(path.name for path in output.iterdir()):
        raise UsageError(
            f"{output} is not the folder of a sweep: it holds {others[0]}", hint="choose another place with -o"
        )


def _forget(options: Options) -> None:
    """With --restart nothing that an earlier sweep measured counts."""
    (options.output / RESULT).unlink(missing_ok=True)
    for name in (DENSE, MEASURED) if options.restart else ():
        shutil.rmtree(options.output / name, ignore_errors=True)


def _prepare(
    cell: Cell, options: Options, progress: Progress, sources: dict[Path, dict[str, str]], *, alone: bool
) -> Literal["open", "kept"] | PrunekitError:
    """Whether a cell must be run, or why it cannot be; its calibration tokens are drawn, which others find then.

    Where cells are run by several processes, the dense model's perplexity is measured here, before them. `sources`
    remembers the identity of models, which takes a whole reading of their files.
    """
    try:
        plug_ins, folder = PlugIns.of(cell.recipe), locate(str(cell.recipe.model), offline=options.offline)
        job = Job.load(cell.recipe, plug_ins, folder, Silent(), options.offline)
        job.source = sources[folder] = sources.get(folder) or job.source
        if _is_kept(cell, job, options):
            return "kept"
        if not alone:
            job.progress = progress
            QuickPerplexity(job, options.dense).share_dense()
    except (_OtherResult, ResourceError):
        raise
    except PrunekitError as error:
        return error
    return "open"


class _OtherResult(UsageError):
    """A folder holds the result of another run."""


def _is_kept(cell: Cell, job: Job, options: Options) -> bool:
    """Whether a cell is done; raises UsageError where something else stands in its place."""
    folder = options.output / cell.name
    if not folder.exists() or options.restart:
        return False
    differing = _differing(job, folder)
    if differing and not options.force:
        path, change = next(iter(differing.items()))
        raise _OtherResult(
            f"{folder} holds the result of another run: {path} is {change}",
            hint="choose another place with -o, or add --force to replace it",
        )
    return not differing


def _differing(job: Job, folder: Path) -> dict[str, str]:
    """In what a finished cell differs from what it would be now."""
    if not (folder / MANIFEST).is_file():
        return {"manifest": "there is none"}
    found, source = Manifest.read(folder), Source.of(job.recipe.model or "", job.model.checkpoint.folder, job.source)
    now = {
        "source": job.source,
        "recipe": portable(job.recipe.model_dump(mode="json")) | {"model": source.spec, "gates": None},
        "calibration": job.calibration and job.calibration.sha256,
        "plug_ins": job.plug_ins.origins,
        "versions": versions(),
    }
    then = {
        "source": found.source.files,
        "recipe": found.recipe | {"gates": None},
        "calibration": found.calibration and found.calibration["sha256"],
        "plug_ins": found.plug_ins,
        "versions": {"prunekit": found.prunekit, **found.versions},
    }
    return changes(then, now)


def _run(cells: Sequence[Cell], options: Options, jobs: int, progress: Progress) -> Iterator[tuple[str, CellResult]]:
    """The result of each cell, as they end."""
    if jobs == 1:
        for number, cell in enumerate(cells, 1):
            progress.note(f"cell {number} of {len(cells)}: {cell.name}")
            yield cell.name, _result(cell.name, run_cell(options.order(cell), progress))
        return
    orders = {cell.name: options.order(cell) for cell in cells}
    progress.stage("cells", len(cells))
    for name, answer in run_all("prunekit.run.sweep:run_cell", orders, jobs):
        result = _result(name, answer)
        progress.step(f"{name}: {result.state}")
        yield name, result


def run_cell(order: dict[str, Any], progress: Progress | None = None) -> PrunekitError | None:
    """Run one cell; hands back why it cannot be run. Raises ResourceError, which other cells would meet, too."""
    output: Path = order["output"]
    try:
        pipeline.prune(
            Recipe.model_validate(order["recipe"]),
            output,
            progress=progress,
            options=pipeline.RunOptions(
                order["force"] or order["restart"], order["restart"], order["offline"], output.parent / DENSE
            ),
        )
    except ResourceError:
        raise
    except PrunekitError as error:
        return error
    return None


def _result(name: str, answer: PrunekitError | None) -> CellResult:
    if isinstance(answer, ResourceError):
        raise answer
    return CellResult(name=name, state="done") if answer is None else _failed(name, answer)


def _failed(name: str, error: PrunekitError) -> CellResult:
    said = f"{error.message}; {error.hint}" if error.hint else error.message
    return CellResult(name=name, state="failed", error=said, code=error.exit_code)
