"""A recipe brought to life: the model, its tokenizer, the plug-ins and the calibration set of one run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunekit import cache, distributed
from prunekit.blockwise.stream import default_batch_size
from prunekit.contract import Allocator, Context, Method
from prunekit.depth.removal import protected_blocks
from prunekit.errors import InputError, UsageError
from prunekit.evaluate.perplexity import COLUMN, Perplexity, Windows, cut, find_protocol, read_text
from prunekit.export.checks import tolerance
from prunekit.export.manifest import Manifest, Result, Source
from prunekit.export.staging import Staging
from prunekit.export.verify import Verification, verify
from prunekit.files import storage_errors, write_atomically
from prunekit.model.checkpoint import read_json
from prunekit.model.device import computed_on
from prunekit.model.loading import open_model
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Pattern, PrunePlan
from prunekit.progress import Progress
from prunekit.recipe import recipe as recipes
from prunekit.recipe import registry
from prunekit.recipe.recipe import Recipe
from prunekit.text.calibration import (
    Calibration,
    calibrate,
    check_vocabulary,
    default_seq_len,
    default_source,
    max_positions,
)
from prunekit.text.sources import NAMES, evaluation_for
from prunekit.versions import versions
from prunekit.weights.allocation import check_budget, refuse_unequal

PROBE_TOKENS = 64  # long enough to exercise attention, short enough to cost nothing


@dataclass
class Job:
    """A recipe brought to life: what the steps of a run pass to each other.

    `remarks` are notes for whoever runs it here; they name files of this machine, so they are not published.
    """

    recipe: Recipe
    model: PrunableModel
    tokenizer: PreTrainedTokenizerBase | None
    method: Method
    allocator: Allocator
    calibration: Calibration | None
    progress: Progress
    offline: bool
    remarks: list[str] = field(default_factory=list)
    dense: Path | None = None  # where perplexities of dense models are kept for other runs

    @classmethod
    def load(cls, recipe: Recipe, progress: Progress, offline: bool) -> "Job":
        """Find model, tokenizer and plug-ins, and draw the calibration set if it is needed."""
        method, allocator = recipes.method(recipe), recipes.allocator(recipe)
        _refuse(recipe, method, allocator)
        if recipe.model is None:
            raise UsageError("no model is given", hint="prunekit prune sample --method wanda --ratio 0.5")
        model, tokenizer = open_model(
            recipe.model,
            device=recipe.compute.device,
            dtype=recipe.compute.dtype,
            offline=offline,
            trust_remote_code=recipe.trust_remote_code,
        )
        calibration = None
        if method.needs.calibration or allocator.needs.calibration:
            calibration = _calibrate(recipe, model, tokenizer, progress, offline)
        return cls(recipe, model, tokenizer, method, allocator, calibration, progress, offline)

    @cached_property
    def source(self) -> dict[str, str]:
        """Identity of the model's files: name -> sha256."""
        return self.model.checkpoint.fingerprint()

    def context(self, staging: Staging | None = None) -> Context:
        """What the plug-ins are given; with a staging folder the model can be edited."""
        recipe, ids = self.recipe, None if self.calibration is None else self.calibration.ids
        seq_len = 1 if ids is None else ids.shape[1]
        return Context(
            model=self.model.with_edits(staging.edits if staging else None),
            ratio=recipe.sparsity if self.method.needs.ratio else 0.0,
            probe=probe_ids(ids, self.model),
            method=recipe.method,
            pattern=Pattern.parse(recipe.pattern),
            calibration=ids,
            batch_size=recipe.calibration.batch_size or default_batch_size(seq_len),
            protected=protected_blocks(recipe.protect_blocks, len(self.model.blocks)),
            layout=recipe.layout,
            width_multiple=recipe.width_multiple,
            generator=torch.Generator().manual_seed(recipe.seed),
            progress=self.progress,
            offload=staging.hidden if staging and recipe.compute.offload == "disk" else None,
            work=staging.work if staging else None,
        )

    def plan(self, ctx: Context) -> PrunePlan:
        """Share out the sparsity and let the method decide; the plan carries recipe and source along."""
        if self.method.needs.budget or (self.method.needs.widths and not self.allocator.uniform):
            ctx.budget = self.allocator.allocate(ctx, ctx.ratio)
            check_budget(ctx, ctx.budget, ctx.ratio, self.recipe.allocator)
        plan = self.method.plan(ctx)
        return plan.model_copy(
            update={
                "notes": tuple(ctx.notes),
                "digest": plan.fingerprint(),
                "evidence": ctx.evidence | plan.evidence,
                "recipe": self.recipe.model_dump(mode="json"),
                "source": self.source,
            }
        )

    def quick_perplexity(self, staging: Staging, pruned: PrunableModel | None = None) -> Perplexity | None:
        """Perplexity of the dense model, or of the pruned one; None when it is not measured."""
        if self.windows is None:
            return None
        offload = staging.hidden / "perplexity" if self.recipe.compute.offload == "disk" else None
        if pruned or self.dense is None:
            title = "perplexity after" if pruned else "perplexity before"
            return self.windows.measure(pruned or self.model, self.progress, offload, title)
        return self._remembered(self.dense, self.windows, offload)

    def measure_dense(self) -> None:
        """Measure the dense model for the runs that share `dense`, unless that was done."""
        if self.windows is not None and self.dense is not None:
            offload = self.dense / "hidden" if self.recipe.compute.offload == "disk" else None
            self._remembered(self.dense, self.windows, offload)

    def _remembered(self, folder: Path, windows: Windows, offload: Path | None) -> Perplexity:
        """The dense model's perplexity from a file of the folder, which is written where it is missing."""
        depends = {"dtype": str(self.model.dtype), "device": self.model.device.type, "versions": versions()}
        ids = [*windows.ids.shape, cache.digest(windows.ids)]
        key = cache.key(source=self.source, ids=ids, join=windows.join, **depends)
        path = folder / f"{windows.protocol}-{key[:16]}.json"
        if path.is_file():
            return Perplexity.read(read_json(path))
        measured = windows.measure(self.model, self.progress, offload, "perplexity before")
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(measured.record(), indent=2) + "\n")
        return measured

    @cached_property
    def windows(self) -> Windows | None:
        """What the quick perplexity is measured on; None when it is not wanted, or its text cannot be had.

        Raises InputError for the second when somebody asked for just that text.
        """
        wanted = self.recipe.evaluation
        if not wanted.quick or self.tokenizer is None:
            return None
        try:
            found = self._cut(self.tokenizer)
        except InputError as error:
            if wanted.set is not None:
                raise InputError(error.message, hint=_without_measuring(error.hint)) from error
            cure = "--ppl FILE chooses a text, --no-eval-quick silences this"
            self._remark(f"perplexity was not measured: {error.message}; {cure}")
            return None
        if self.measures_calibration_text:
            self._remark(f"perplexity is measured on the calibration text itself, {found.set}; --ppl chooses another")
        return found

    def _cut(self, tokenizer: PreTrainedTokenizerBase) -> Windows:
        wanted, name = self.recipe.evaluation, self._measured_text
        column = self.recipe.calibration.column if name == self.recipe.calibration.source else None
        text = read_text(name, column=column, offline=self.offline, progress=self.progress)
        return cut(text, self.model.config, tokenizer, find_protocol(wanted.protocol), wanted.windows)

    @property
    def _measured_text(self) -> str:
        calibration = self.recipe.calibration.source or default_source(self.recipe.model or "")
        return self.recipe.evaluation.set or evaluation_for(calibration)

    @property
    def measures_calibration_text(self) -> bool:
        """Whether the quick perplexity is on what was calibrated on; named texts have another part for it."""
        name = self._measured_text
        return self.calibration is not None and name == self.recipe.calibration.source and name not in NAMES

    def _remark(self, text: str) -> None:
        self.remarks.append(text)
        self.progress.note(text)

    def manifest(
        self, plan: PrunePlan, result: Result, perplexity: dict[str, Any] | None, notes: Sequence[str]
    ) -> Manifest:
        """What `prunekit.json` will say."""
        checkpoint = self.model.checkpoint
        return Manifest.of(
            source=Source.of(self.recipe.model or "", checkpoint.folder, plan.source),
            recipe=plan.recipe,
            plan=plan,
            plug_ins=self.plug_ins(),
            computed=computed_on(self.model.device, self.model.dtype),
            calibration=self.calibration and self.calibration.record(),
            result=result,
            perplexity=perplexity,
            notes=tuple(notes),
            logit_tolerance=None if self.recipe.export.verify == "off" else tolerance(self.model.dtype),
        )

    def verify(self, staging: Staging) -> Verification | None:
        """Prove in a fresh process that the exported folder is the model that was pruned."""
        if self.recipe.export.verify == "off":
            return None
        self.progress.stage("verifying", 1)
        torch.cuda.empty_cache()  # the fresh process needs what this one keeps for later
        verification = verify(
            staging.export_dir,
            staging.probe_path,
            self.recipe.export.verify,
            device=str(self.model.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
            trust_remote_code=self.recipe.trust_remote_code,
        )
        self.progress.step(f"{verification.mode}: {len(verification.checks)} checks passed")
        return verification

    def plug_ins(self) -> dict[str, str]:
        """Which distribution, in which version, brought the method and the allocator."""
        found = [registry.find(self.recipe.method, "method"), registry.find(self.recipe.allocator, "allocator")]
        return {plugin.name: f"{plugin.distribution} {plugin.version}".strip() for plugin in found}

    def signature(self, plan: PrunePlan | None = None) -> dict[str, Any]:
        """All that the finished blocks depend on; an interrupted run goes on only under the same one.

        A plan that the run makes itself follows from the rest; one that was given is part of the signature.
        """
        recipe = self.recipe.model_dump(mode="json")
        return {
            "source": self.source,
            "recipe": {
                key: recipe[key]
                for key in (
                    "method",
                    "ratio",
                    "pattern",
                    "protect_blocks",
                    "layout",
                    "width_multiple",
                    "allocator",
                    "options",
                    "allocator_options",
                    "seed",
                )
            },
            "plan": plan and plan.fingerprint(),
            "calibration": self.calibration and self.calibration.sha256,
            "batch_size": recipe["calibration"]["batch_size"],
            "device": self.model.device.type,  # which of several cards does not matter
            "dtype": str(self.model.dtype),
            "plug_ins": self.plug_ins(),
            "versions": versions(),
        }


def _without_measuring(hint: str | None) -> str:
    """What to do when the text that was asked for cannot be had; only `eval` can name a column."""
    if hint and COLUMN in hint:
        return f"--no-eval-quick here, and then: prunekit eval OUT --ppl FILE {COLUMN} NAME"
    return "; ".join(filter(None, (hint, "--no-eval-quick leaves the measurement out")))


def _refuse(recipe: Recipe, method: Method, allocator: Allocator) -> None:
    """Refuse what cannot work before anything is loaded."""
    recipes.refuse_needless_allocator(recipe, method.needs.budget, method.needs.widths)
    if not allocator.uniform:
        refuse_unequal(Pattern.parse(recipe.pattern), recipe.allocator)
    recipes.refuse_needless_protection(recipe, method.needs.blocks)
    recipes.refuse_needless_layout(recipe, method.needs.widths)
    if distributed.started() > 1 and not method.needs.processes:
        raise UsageError(
            f"{recipe.method} works in one process, and {distributed.started()} were started",
            hint="start it without torchrun or accelerate launch",
        )
    if not method.needs.ratio and recipe.ratio is not None:
        raise UsageError(
            f"{recipe.method} is told what to remove, so a ratio means nothing to it", hint="leave --ratio out"
        )
    if not method.needs.budget and recipe.pattern != "unstructured":
        raise UsageError(f"{recipe.method} prunes no single weights, so pattern {recipe.pattern} means nothing to it")


def _calibrate(
    recipe: Recipe,
    model: PrunableModel,
    tokenizer: PreTrainedTokenizerBase | None,
    progress: Progress,
    offline: bool,
) -> Calibration:
    if tokenizer is None:
        raise InputError(
            f"{recipe.model} has no tokenizer, and {recipe.method} needs a calibration set",
            hint="copy the tokenizer's files into the folder",
        )
    wanted = recipe.calibration
    source = wanted.source or default_source(recipe.model or "")
    calibration = calibrate(
        source,
        tokenizer,
        samples=wanted.samples,
        seq_len=wanted.seq_len or default_seq_len(model.config),
        seed=wanted.seed,
        column=wanted.column,
        offline=offline,
        progress=progress,
    )
    check_vocabulary(calibration.ids, model.config.get_text_config().vocab_size)
    size = f"{calibration.samples} sequences of {calibration.seq_len} tokens"
    progress.note(f"calibrating on {source}: {size}, seed {calibration.seed}")
    for note in calibration.notes:
        progress.note(note)
    return calibration


def probe_ids(ids: Tensor | None, model: PrunableModel) -> Tensor:
    """A short sequence (1, tokens): the beginning of the calibration set, else seeded random tokens."""
    if ids is not None:
        return ids[:1, :PROBE_TOKENS].clone()
    generator, tokens = torch.Generator().manual_seed(0), min(PROBE_TOKENS, max_positions(model.config) or PROBE_TOKENS)
    return torch.randint(model.config.get_text_config().vocab_size, (1, tokens), generator=generator)
