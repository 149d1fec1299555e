"""On trained models the methods rank as their papers say: SparseGPT before Wanda, Wanda before magnitude."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from prunekit import testing as checks
from prunekit.contract import carry_out
from prunekit.evaluate.perplexity import find_protocol, perplexity, windows
from prunekit.recipe import registry
from prunekit.sample import PATH as SAMPLE
from prunekit.text.calibration import calibrate, max_positions
from prunekit.text.sources import load_text
from prunekit.weights.masks import mean_sparsity, measure_sparsity

pytestmark = pytest.mark.slow

METHODS = ("dense", "magnitude", "wanda", "sparsegpt")


@dataclass
class Study:
    """One model, calibrated and measured: perplexity and sparsity by method."""

    folder: Path
    calibration: Tensor
    held_out: Tensor
    work: Path

    def measure(self, name: str, ratio: float = 0.5, pattern: str = "unstructured") -> tuple[float, float]:
        """Perplexity and mean sparsity of the linears after a method has zeroed that fraction of the weights."""
        method = registry.load("magnitude" if name == "dense" else name)()
        target = self.work / f"{name}-{ratio}-{pattern}".replace(":", "-")
        ctx = checks.open_context(self.folder, method, target, ids=self.calibration, ratio=ratio, pattern=pattern)
        if name != "dense":
            carry_out(method, ctx, method.plan(ctx))
        return perplexity(ctx.model, self.held_out), mean_sparsity(ctx.model, measure_sparsity(ctx.model))

    def assert_ranked(self, ratio: float = 0.5) -> None:
        found = {name: self.measure(name, ratio) for name in METHODS}
        print({name: f"{value:.3f} at {sparsity:.4%}" for name, (value, sparsity) in found.items()})
        ppl = {name: value for name, (value, _) in found.items()}
        assert ppl["dense"] < ppl["sparsegpt"] < ppl["wanda"] < ppl["magnitude"], ppl
        for name in METHODS[1:]:
            assert found[name][1] == pytest.approx(ratio, abs=0.001), f"{name} is {found[name][1]:.4%} sparse"


def study(folder: Path, calibration: str, evaluation: str, work: Path, samples: int, seq_len: int, count: int) -> Study:
    """Calibration crops and the first `count` windows of an evaluation text, tokenised for the model of `folder`."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    drawn = calibrate(calibration, tokenizer, samples=samples, seq_len=seq_len, cache=work / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tokenizer remarks that the text is longer than the model's context
        text = load_text(evaluation, split="evaluation")
        positions = max_positions(AutoConfig.from_pretrained(folder))
        ids = windows(text, tokenizer, find_protocol("sparsegpt"), positions, count)
    return Study(folder, drawn.ids, ids, work)


def head(source: Path, folder: Path) -> str:
    """A file with the first stories of a text: enough for a test, and quick to tokenise."""
    target = folder / source.name
    target.write_text(source.read_text(encoding="utf-8")[:250_000], encoding="utf-8")
    return str(target)


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    work = tmp_path_factory.mktemp("stories")
    train, valid = (head(shared_data / "text" / f"tinystories-{part}.txt", work) for part in ("train", "valid"))
    return study(shared_data / "models" / "stories260K", train, valid, work, 64, 256, 24)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(SAMPLE, "sample", "sample", tmp_path_factory.mktemp("sample"), 32, 256, 8)


def test_at_half_the_weights_of_stories260k_sparsegpt_beats_wanda_and_wanda_beats_magnitude(stories: Study) -> None:
    stories.assert_ranked()


def test_at_half_the_weights_of_the_sample_sparsegpt_beats_wanda_and_wanda_beats_magnitude(sample: Study) -> None:
    sample.assert_ranked()


def test_with_two_of_four_kept_sparsegpt_still_beats_wanda_on_stories260k(stories: Study) -> None:
    found = {name: stories.measure(name, pattern="2:4") for name in METHODS[1:]}
    print(found)
    assert found["sparsegpt"][0] < found["wanda"][0] < found["magnitude"][0]
    assert {sparsity for _, sparsity in found.values()} == {0.5}


def test_on_stories260k_comp_with_weights_beats_masks_masks_beat_nothing_and_all_beat_llm_pruner(
    stories: Study,
) -> None:
    ratio = 0.2

    def measured(name: str, **options: object) -> float:
        method = registry.load(name)(**options)
        target = stories.work / f"{name}-{options}-{ratio}"
        ctx = checks.open_context(stories.folder, method, target, ids=stories.calibration[:32], ratio=ratio)
        carry_out(method, ctx, method.plan(ctx))
        return perplexity(ctx.model, stories.held_out)

    weights, mask, none = (measured("comp", recover=how) for how in ("weights", "mask", "none"))
    other = measured("llm-pruner")
    print(f"at {ratio:.0%}: weights {weights:.2f}, mask {mask:.2f}, none {none:.2f}, LLM-Pruner {other:.2f}")
    assert weights < mask < none < other
