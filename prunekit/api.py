"""What a plug-in imports: the contract, the plan, the walker, and the toolboxes of the methods.

These names are stable: a release that removes or changes one says so in the changelog a minor version ahead, and until
then the old use works with a warning. Everything else in `prunekit` may change with any release. `prunekit.testing` has
the checks that every plug-in must pass.
"""

from prunekit import distributed
from prunekit.blockwise.loss import mean_loss
from prunekit.blockwise.statistics import Gram, Hessian, InputNorm, Moments, Statistics
from prunekit.blockwise.stream import Stream, logits, split
from prunekit.blockwise.walk import LoadedLinear, Visit, calibration_of, observe, record_probe, transitions, walk
from prunekit.contract import Allocator, Budget, Context, Method, Needs, PlugIn, Recovery, carry_out
from prunekit.depth.actions import RemoveBlock
from prunekit.depth.plan import (
    candidates,
    check_removal,
    count_removed,
    influences,
    losses_without,
    plan_blocks,
    remove_blocks,
    smallest,
)
from prunekit.errors import InputError, PrunekitError, ResourceError, UnsupportedError, UsageError
from prunekit.model.changes import FolderChanges
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import Block, Linear
from prunekit.plan import Action, Pattern, PrunePlan
from prunekit.spectra.spectrum import metrics, sketch, spectra
from prunekit.weights.actions import Sparsify
from prunekit.weights.allocation import block_sizes, budget_of_blocks, complete, per_block
from prunekit.weights.budgets import cheapest, settle, shift, spread
from prunekit.weights.masks import keep_above_threshold, keep_per_group, keep_per_row, mean_sparsity, plan_sparsity
from prunekit.width.actions import Narrow
from prunekit.width.least_squares import keep_largest
from prunekit.width.plan import Neurons, allotted, neurons, plan_narrowing
from prunekit.width.walk import Narrowable, narrow, statistics_of_dense

__all__ = [
    "Action",
    "Allocator",
    "Block",
    "Budget",
    "Context",
    "FolderChanges",
    "Gram",
    "Hessian",
    "InputError",
    "InputNorm",
    "Linear",
    "LoadedLinear",
    "Method",
    "Moments",
    "Narrow",
    "Narrowable",
    "Needs",
    "Neurons",
    "Pattern",
    "PlugIn",
    "PrunableModel",
    "PrunePlan",
    "PrunekitError",
    "Recovery",
    "RemoveBlock",
    "ResourceError",
    "Sparsify",
    "Statistics",
    "Stream",
    "UnsupportedError",
    "UsageError",
    "Visit",
    "allotted",
    "block_sizes",
    "budget_of_blocks",
    "calibration_of",
    "candidates",
    "carry_out",
    "cheapest",
    "check_removal",
    "complete",
    "count_removed",
    "distributed",
    "influences",
    "keep_above_threshold",
    "keep_largest",
    "keep_per_group",
    "keep_per_row",
    "logits",
    "losses_without",
    "mean_loss",
    "mean_sparsity",
    "metrics",
    "narrow",
    "neurons",
    "observe",
    "per_block",
    "plan_blocks",
    "plan_narrowing",
    "plan_sparsity",
    "record_probe",
    "remove_blocks",
    "settle",
    "shift",
    "sketch",
    "smallest",
    "spectra",
    "split",
    "spread",
    "statistics_of_dense",
    "transitions",
    "walk",
]
