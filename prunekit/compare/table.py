"""Runs side by side: what their manifests say, what was measured of them, and which of them no other beats.

A run is on the Pareto front when no other run is at least as good in both figures and better in one. Nothing here
imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prunekit.contract import Needs
from prunekit.evaluate.rows import Count, Number, Perplexity, Rate, Row, Size, Verdict
from prunekit.evaluate.verdicts import judge
from prunekit.export.manifest import Manifest
from prunekit.formatting import span
from prunekit.plan import Frozen
from prunekit.recipe.limits import Gates
from prunekit.recipe.meaning import idle
from prunekit.recipe.recipe import FREE

COLUMNS = ("model", "method", "allocator", "ratio", "pattern")  # settings that every table shows
QUIET = ("evaluation.", "export.", "compute.", "gates.")  # settings that change no weight
INFINITE = float("inf")


class Quality(Frozen):
    """The quick perplexity that a run measured before and after pruning."""

    before: Number
    after: Number
    ratio: float | None = Field(description="after / before.")
    set: str
    protocol: str
    window: int
    windows: int
    tokens: int
    revision: str | None


class Run(Frozen):
    """One run of a comparison."""

    name: str
    source: str = Field(description="The model that was pruned.")
    method: str
    allocator: str | None = Field(
        description="What shared out the ratio, where weights were zeroed or blocks' widths differ."
    )
    ratio: float
    pattern: str | None = Field(description="Where zeros may be, where single weights were zeroed.")
    settings: dict[str, Any] = Field(description="Other settings in which the runs differ: dotted path -> value.")
    parameters: int
    parameters_ratio: float = Field(description="Divided by the source's.")
    stored_bytes: int = Field(description="Bytes of the weight files.")
    blocks: int
    removed_blocks: tuple[int, ...]
    widths: tuple[int, ...] = Field(default=(), description="Neurons of every block, where some were cut out.")
    sparsity: float = Field(description="Fraction of zeros in the linears of the blocks.")
    perplexity: Quality | None = Field(description="As the run measured it; null when it did not.")
    measured: Row | None = Field(default=None, description="As it was measured for this comparison.")
    work_ratio: float | None = Field(
        default=None, description="Floating-point operations per token, counted, divided by the dense model's."
    )
    fronts: tuple[Literal["size", "speed"], ...] = Field(
        default=(),
        description="Pictures on whose Pareto front the run is: quality against size, against speed "
        "(as it was timed, 1 where the interval holds 1; or else by the work per token).",
    )

    @property
    def neurons(self) -> str:
        """`376`, or `288 to 440`; nothing where none was cut out."""
        return span(self.widths) if self.widths else ""

    @property
    def quality(self) -> Number | None:
        """The perplexity to go by, relative to the dense model's where that is known: what was measured last."""
        if self.measured and self.measured.perplexity:
            found = self.measured.perplexity[0]
            return found.value if found.ratio is None else found.ratio
        found = self.perplexity
        return found and (found.after if found.ratio is None else found.ratio)

    @property
    def timing(self) -> Rate | None:
        """New tokens per second, beside the dense model's; None when nothing was timed beside it."""
        found = self.measured.speed.decode if self.measured and self.measured.speed else None
        return found if found and found.ratio is not None else None

    @property
    def speed(self) -> float | None:
        """The speed to go by, relative to the dense model's: 1 where its interval holds 1 and shows no difference."""
        if (found := self.timing) is None:
            return None
        alike = found.ratio_low is None or found.ratio_high is None or found.ratio_low <= 1 <= found.ratio_high
        return 1.0 if alike else found.ratio


class Runs(Frozen):
    """What `prunekit compare --json` prints."""

    schema_version: Literal[1] = 1
    runs: tuple[Run, ...]
    baseline: Row | None = Field(default=None, description="The dense model, where it was measured beside the runs.")
    notes: tuple[str, ...] = Field(default=(), description="What keeps figures from being compared.")


def table_of(
    folders: Mapping[str, Path],
    rows: Mapping[str, Row] | None = None,
    baseline: Row | None = None,
    work: Mapping[str, float] | None = None,
) -> Runs:
    """The runs whose folders have these names, and what was measured and counted of them.

    Raises InputError for a folder without a manifest.
    """
    manifests = {name: Manifest.read(folder) for name, folder in folders.items()}
    differing = varying([effective(manifest) for manifest in manifests.values()])
    runs = [
        _run(name, folders[name], found, differing).model_copy(
            update={"measured": (rows or {}).get(name), "work_ratio": (work or {}).get(name)}
        )
        for name, found in manifests.items()
    ]
    return Runs(runs=tuple(fronts(runs)), baseline=baseline, notes=tuple(_notes(runs)))


def effective(manifest: Manifest) -> dict[str, Any]:
    """Dotted path -> value of the settings that mattered to a run: none of a calibration that did not take place."""
    plan, unused = manifest.plan, [] if manifest.calibration else ["calibration."]
    needs = Needs(budget=bool(plan.sparsify()), widths=bool(plan.widths()), blocks=not plan.sparsify())
    unused += idle(needs, manifest.recipe.get("layout", "uniform"))
    unused += [] if allocated(manifest) else ["allocator"]
    return {path: value for path, value in _flat(manifest.recipe).items() if not path.startswith((*QUIET, *unused))}


def allocated(manifest: Manifest) -> str | None:
    """The allocator that said how much each place loses; None where none was asked."""
    name = manifest.recipe.get("allocator")
    return name if manifest.plan.sparsify() or (manifest.plan.widths() and name != "uniform") else None


def varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which runs differ, but those that have a column; options are compared within their method."""
    paths = dict.fromkeys(path for each in settings for path in each if path not in COLUMNS)
    return [path for path in paths if _varies(path, settings)]


def _varies(path: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    if path.partition(".")[0] not in FREE:
        return len({repr(each[path]) for each in settings if path in each}) > 1
    methods = {each.get("method") for each in settings}
    return any(len({repr(each.get(path)) for each in settings if each.get("method") == name}) > 1 for name in methods)


def fronts(runs: Sequence[Run]) -> list[Run]:
    """The same runs, each with the pictures on whose Pareto front it is."""
    timed = any(run.speed is not None for run in runs)
    cost: dict[Literal["size", "speed"], Callable[[Run], float | None]] = {
        "size": lambda run: run.stored_bytes,
        "speed": lambda run: (None if run.speed is None else -run.speed) if timed else run.work_ratio,
    }
    found = {name: pareto([(price(run), _badness(run)) for run in runs]) for name, price in cost.items()}
    return [
        run.model_copy(update={"fronts": tuple(name for name in cost if index in found[name])})
        for index, run in enumerate(runs)
    ]


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[int]:
    """Indices of the points that no other is better than in one coordinate and at least as good in the other.

    Smaller is better in both; a point without one of them is on no front.
    """
    whole = [(index, x, y) for index, (x, y) in enumerate(points) if x is not None and y is not None]
    return [i for i, x, y in whole if not any(u <= x and v <= y and (u, v) != (x, y) for _, u, v in whole)]


def _badness(run: Run) -> float | None:
    """The quality as something to be small; a model that gives no number is infinitely bad, and on no front."""
    value = run.quality
    return None if value is None or isinstance(value, str) or value == INFINITE else value


def stored_bytes(folder: Path) -> int:
    """Size of the weight files of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def judged(run: Run, gates: Gates) -> tuple[Verdict, ...]:
    """What became of limits, by what a run itself measured and by the files."""
    size = Size(parameters=Count(value=run.parameters), stored_bytes=Count(value=run.stored_bytes))
    known = run.perplexity
    quality = () if known is None else (_as_measured(known),)
    return judge(gates, [Row(model=run.name, baseline=False, size=size, perplexity=quality)])


def _as_measured(known: Quality) -> Perplexity:
    given = known.model_dump(exclude={"before", "after"})
    return Perplexity(value=known.after, split="", join="", sha256="", **given)


def _run(name: str, folder: Path, manifest: Manifest, differing: Sequence[str]) -> Run:
    settings, result, zeroing = effective(manifest), manifest.result, bool(manifest.plan.sparsify())
    return Run(
        name=name,
        source=manifest.source.spec,
        method=manifest.plan.method,
        allocator=allocated(manifest),
        ratio=manifest.plan.ratio,
        pattern=manifest.recipe.get("pattern") if zeroing else None,
        settings={path: settings[path] for path in differing if path in settings},
        parameters=result.parameters,
        parameters_ratio=result.parameters / max(1, result.parameters_before),
        stored_bytes=stored_bytes(folder),
        blocks=result.blocks,
        removed_blocks=result.removed_blocks,
        widths=result.widths,
        sparsity=result.sparsity,
        perplexity=_quality(manifest.perplexity),
    )


def _quality(found: Mapping[str, Any] | None) -> Quality | None:
    if not found:
        return None
    before, after = found["before"], found["after"]
    numbers = isinstance(before, int | float) and isinstance(after, int | float) and before
    known = {name: found.get(name) for name in Quality.model_fields if name != "ratio"}
    return Quality.model_validate(known | {"ratio": after / before if numbers else None})


def _notes(runs: Sequence[Run]) -> list[str]:
    """Why some figures of a table cannot be compared with others."""
    notes: list[str] = []
    if len(sources := dict.fromkeys(run.source for run in runs)) > 1:
        notes.append(f"the runs pruned different models: {', '.join(sources)}")
    protocols = {_protocol(run.perplexity) for run in runs if run.perplexity}
    if len(protocols) > 1 and not all(run.measured and run.measured.perplexity for run in runs):
        notes.append(f"perplexities cannot be compared, since they are on {' / '.join(sorted(protocols))}")
    if missing := [run.name for run in runs if run.quality is None]:
        notes.append(f"no perplexity is known of {', '.join(missing)}")
    return notes


def _protocol(found: Quality) -> str:
    return f"{found.set}, protocol {found.protocol}, {found.windows} windows of {found.window} tokens"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of all leaves."""
    found: dict[str, Any] = {}
    for key, part in value.items():
        found |= _flat(part, f"{prefix}{key}.") if isinstance(part, dict) else {prefix + key: part}
    return found
