"""What the processes of one run do together: they make the plan and apply it, each its share of the work.

The first process runs the pipeline, with all that it reads back, prints and writes. The others `follow`: they find the
same model and the same texts, and go through the method's steps beside it, without a staging folder.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from prunekit import distributed
from prunekit.errors import InputError
from prunekit.export.staging import Staging
from prunekit.model.hub import locate
from prunekit.plan import PrunePlan
from prunekit.progress import Silent
from prunekit.recipe.recipe import Recipe
from prunekit.run.job import Job
from prunekit.run.plug_ins import PlugIns
from prunekit.run.stages import run_stages


def follow(recipe: Recipe, *, apply: bool = True, offline: bool = False) -> None:
    """Take part in the run of the first process, up to the plan or until all stages are done."""
    plug_ins = PlugIns.of(recipe)
    job = Job.load(recipe, plug_ins, locate(recipe.model or "", offline=offline), Silent(), offline)
    with together(job):
        plan = agreed_plan(job)
        if apply:
            run_stages(job, plan)


@contextmanager
def together(job: Job) -> Iterator[None]:
    """Connect the processes of a run; raises InputError in one that found another model or text than the first."""
    with distributed.joined(job.model.device):
        if distributed.size() > 1:
            _compare(json.loads(json.dumps(job.signature())))
        yield


def _compare(mine: dict) -> None:
    first = distributed.from_first(mine)
    if differing := [key for key in mine if mine[key] != first[key]]:
        raise InputError(
            f"{differing[0]} differs from what the first process found",
            hint="give all processes the same command, model, texts and versions",
        )


def agreed_plan(job: Job, staging: Staging | None = None, known: PrunePlan | None = None) -> PrunePlan:
    """The plan that the first process knows, or else the one that all make together; the same for all."""
    if distributed.from_first(known is None):
        return job.plan(job.context(staging and staging.edits, staging and staging.hidden))
    text = distributed.from_first("" if known is None else known.to_json())
    return known or PrunePlan.from_json(text)
