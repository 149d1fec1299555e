"""The model card parses as the hub reads it and repeats the figures it was given, whatever the names contain."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

from prunekit.export.card import code, licence, model_card, write_card
from prunekit.export.manifest import LinearResult, Manifest, Result, Source
from prunekit.plan import PrunePlan
from prunekit.recipe.command import repeat_command
from prunekit.recipe.settings import build
from prunekit.weights.actions import Sparsify

PERPLEXITY = {
    "set": "wikitext2",
    "protocol": "sparsegpt",
    "window": 2048,
    "windows": 32,
    "tokens": 65504,
    "before": 12.346,
    "after": 15.204,
}
CALIBRATION = {"source": "wikitext2", "samples": 128, "seq_len": 2048, "seed": 0}
STRANGE = "a: [b`c` | #d\n---\n{{ x }} <e>"


def manifest(spec: str = "org/name@v1", folder: Path = Path("nowhere"), **more: Any) -> Manifest:
    actions = tuple(Sparsify(linear=f"model.layers.{i}.mlp.up_proj", sparsity=s) for i, s in enumerate((0.4, 0.6)))
    linears = {action.linear: LinearResult(weights=1000, zeros=501, sparsity=0.501) for action in actions}
    result = Result(
        parameters=123456,
        parameters_before=123456,
        blocks=2,
        weights=2000,
        zeros=1002,
        sparsity=0.501,
        linears=linears,
    )
    given = {"recipe": {"allocator": "uniform", "options": {"variant": True}}, "perplexity": PERPLEXITY}
    plan = PrunePlan(method="wanda", ratio=0.5, actions=actions)
    rest = {"plan": plan, "result": result, "calibration": CALIBRATION} | given | more
    return Manifest.of(source=Source.of(spec, folder, {}), **rest)


def card(found: Manifest, source: Path, **more: Any) -> ModelCard:
    return model_card(found, source=source, command="prunekit prune org/name@v1 -m wanda --ratio 0.5", **more)


def test_front_matter_is_what_the_hub_knows(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\n---\n# Name\n")
    write_card(tmp_path, manifest(), source=tmp_path, command="prunekit prune x", verified="full")
    found = metadata_load(tmp_path / "README.md") or {}
    (index,) = found.pop("model-index")
    (result,) = index["results"]
    assert (index["name"], result["dataset"]) == ("name-wanda", {"name": "wikitext2", "type": "Salesforce/wikitext"})
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"], metric["args"]["windows"]) == ("perplexity", 15.204, 32)
    assert found == {
        "base_model": "org/name",
        "base_model_relation": "finetune",
        "language": ["en"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["prunekit", "pruned", "wanda"],
    }


def test_the_figures_are_those_given(tmp_path: Path) -> None:
    text = card(manifest(), tmp_path, verified="full").text
    assert "1,002 of 2,000 weights of its pruned linears are zero (50.10%)" in text
    assert "123,456 parameters" in text
    assert "| `wikitext2`, 32 windows of 2048 tokens, protocol `sparsegpt` | 12.35 | 15.20 |" in text
    assert "65,504 predicted tokens" in text
    assert "| plan | 2 linears, each 40.00% to 60.00% zeros |" in text
    assert "| method | `wanda`, variant = `true` |" in text
    assert "| calibration | `wikitext2`, 128 sequences of 2048 tokens, seed 0 |" in text


def test_the_card_says_what_the_zeros_do_not_bring_and_how_to_repeat_the_run(tmp_path: Path) -> None:
    text = card(manifest(), tmp_path).text
    assert "File size, memory and speed are those of the source model" in text
    assert "    prunekit prune org/name@v1 -m wanda --ratio 0.5\n" in text


def test_what_was_not_measured_or_verified_is_said_to_be_so(tmp_path: Path) -> None:
    text = card(manifest(perplexity=None, calibration=None), tmp_path).text
    assert "Perplexity was not measured." in text
    assert "The folder was not verified" in text
    assert "calibration" not in text
    assert "## Sample" not in text
    assert "generation was not tried" in card(manifest(), tmp_path, verified="streaming").text


def test_a_perplexity_that_is_no_number_is_shown_as_it_is(tmp_path: Path) -> None:
    assert "| 12.35 | nan |" in card(manifest(perplexity=PERPLEXITY | {"after": "nan"}), tmp_path).text


def test_a_local_folder_is_no_base_model(tmp_path: Path) -> None:
    assert "base_model" not in card(manifest(str(tmp_path)), tmp_path).data.to_dict()


def test_a_strange_name_breaks_neither_the_front_matter_nor_the_tables(tmp_path: Path) -> None:
    found = manifest("sample", calibration=CALIBRATION | {"source": STRANGE})
    found = found.model_copy(update={"source": Source(name=STRANGE, kind="hub", files={})})
    shown = ModelCard(str(card(found, tmp_path)))
    assert shown.data.to_dict()["base_model"] == STRANGE
    assert shown.text.startswith("\n# ")
    rows = [line for line in shown.text.splitlines() if line.startswith("| calibration")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 3


def test_a_sample_with_fences_and_control_characters_stays_a_block(tmp_path: Path) -> None:
    text = card(manifest(), tmp_path, sample=("```\n# a", "\x00b\r\n\n```")).text
    assert "\n    ```\n    # a\n" in text
    assert "    \N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\n" in text


@pytest.mark.parametrize("text", ["a", "``", "a`b", "`", "a|b", "", "a\nb"])
def test_inline_code_ends_where_it_should(text: str) -> None:
    shown = code(text)
    ticks = len(shown) - len(shown.lstrip("`"))
    assert shown.endswith("`" * ticks)
    assert "`" * ticks not in shown[ticks:-ticks]
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        (
            "license: other\nlicense_name: llama3\nlicense_link: LICENSE",
            {"license": "other", "license_name": "llama3", "license_link": "LICENSE"},
        ),
        ("license: 7", {}),
        ("license: [", {}),
        ("- a list", {}),
        ("tags: []", {}),
    ],
)
def test_the_licence_is_the_sources_own(tmp_path: Path, front: str, expected: dict[str, str]) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    assert licence(tmp_path) == expected


def test_a_licence_file_is_named_when_the_card_names_none(tmp_path: Path) -> None:
    assert licence(tmp_path) == {}
    (tmp_path / "LICENSE.txt").touch()
    assert licence(tmp_path)["license"] == "other"
    assert licence(tmp_path)["license_link"] == "LICENSE.txt"


def test_the_command_repeats_the_settings_that_are_not_the_default() -> None:
    changed = {
        "model": "org/name",
        "method": "wanda",
        "ratio": 0.5,
        "options": {"variant": True},
        "calibration": {"samples": 16, "source": "/home/me/my text.txt"},
        "export": {"max_shard_size": "1GB"},
        "compute": {"dtype": "float32"},
    }
    command = repeat_command("org/name@0a1b", changed)
    assert "/home" not in command
    words = shlex.split(command)
    assert words[:7] == ["prunekit", "prune", "org/name@0a1b", "-m", "wanda", "--ratio", "0.5"]
    flags = {"method": "wanda", "ratio": "0.5", "calib": words[words.index("--calib") + 1]}
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    recipe, _ = build({**flags, "samples": words[words.index("--samples") + 1]}, sets)
    assert recipe.model_dump(exclude_defaults=True) == {
        **{key: value for key, value in changed.items() if key != "model"},
        "calibration": {"samples": 16, "source": "my text.txt"},
    }


@pytest.mark.parametrize("value", ["true", "0.5", "a: b", "", "~", "1GB", None, [1, 2], "naïve"])
def test_a_setting_of_any_kind_survives_the_shell_and_yaml(value: Any) -> None:
    word = shlex.split(repeat_command("m", {"options": {"key": value}}))[-1]
    assert yaml.safe_load(word.partition("=")[2]) == value


@pytest.mark.parametrize("after", ["nan", "inf"])
def test_what_is_no_number_is_no_result_of_the_hub(after: str, tmp_path: Path) -> None:
    found = card(manifest(perplexity=PERPLEXITY | {"after": after}), tmp_path)
    assert found.data.eval_results is None and after in found.text
