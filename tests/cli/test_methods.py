import json

from prunekit.recipe import registry

from .conftest import Run


def test_every_plug_in_is_listed(run: Run) -> None:
    result = run("methods")
    listed = [line.split()[:2] for line in result.stdout.splitlines()[2:]]

    assert listed == [[plugin.name, plugin.kind] for plugin in registry.plugins()]
    assert result.stderr == ""


def test_json_carries_what_is_known_of_each(run: Run) -> None:
    found = json.loads(run("methods", "--json").stdout)

    wanda = next(entry for entry in found["methods"] if entry["name"] == "wanda")
    assert (found["schema_version"], wanda["kind"], wanda["problem"]) == (1, "method", None)
    assert wanda["distribution"] == "prunekit"


def test_a_method_is_shown_with_its_options_and_its_paper(run: Run) -> None:
    shown = run("methods", "sparsegpt")
    found = json.loads(run("methods", "sparsegpt", "--json").stdout)

    assert "arXiv:2301.00774" in shown.stdout
    for option in registry.load("sparsegpt").model_fields:
        assert option in shown.stdout
    assert found["needs"] == ["calibration", "budget"]
    assert {option["name"]: option["default"] for option in found["options"]}["dampening"] == 0.01


def test_an_allocator_is_shown_too(run: Run) -> None:
    assert "no options" in run("methods", "uniform").stdout


def test_an_unknown_name_ends_with_2_and_offers_the_nearest(run: Run) -> None:
    result = run("methods", "sparsegp")

    assert result.exit_code == 2
    assert "hint: did you mean sparsegpt?" in result.stderr


def test_at_80_columns_no_line_is_longer(run: Run) -> None:
    for words in (("methods",), ("methods", "sparsegpt"), ("recipe", "show", "-m", "wanda")):
        lines = run(*words, COLUMNS="80").stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert all(line == line.rstrip() for line in lines)
