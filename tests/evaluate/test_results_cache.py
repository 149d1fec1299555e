"""What is kept is handed back for the same models, versions and settings only, and never when it is damaged."""

from pathlib import Path

from prunekit.evaluate.results_cache import Label, ResultsCache

LABEL = Label("speed", ("dense", "run"), {"rounds": 7})


def results(folder: Path, run: str = "b", torch: str = "2.13") -> ResultsCache:
    return ResultsCache(folder, {"dense": "a", "run": run}, {"torch": torch})


def kept(place: ResultsCache, label: Label = LABEL) -> bool:
    """Whether a figure is handed back and not measured."""
    asked: list[int] = []
    assert place.figure(label, list[float], lambda: asked.append(1) or [1.5, 2.5]) == [1.5, 2.5]
    assert place.holds(label) or place.folder is None
    return not asked


def test_a_figure_is_measured_once(tmp_path: Path) -> None:
    assert not kept(results(tmp_path)) and kept(results(tmp_path))
    assert not kept(ResultsCache()) and not kept(ResultsCache())


def test_another_model_version_or_setting_is_another_figure(tmp_path: Path) -> None:
    assert not kept(results(tmp_path))
    assert not kept(results(tmp_path, run="c")) and not kept(results(tmp_path, torch="2.14"))
    assert not kept(results(tmp_path), Label("speed", ("dense", "run"), {"rounds": 9}))
    assert not kept(results(tmp_path), Label("speed", ("run", "dense"), {"rounds": 7}))


def test_a_damaged_figure_counts_as_absent(tmp_path: Path) -> None:
    kept(results(tmp_path))
    for content in ("", "{", '{"another": "form"}'):
        (file,) = tmp_path.iterdir()
        file.write_text(content)
        assert not kept(results(tmp_path)) and kept(results(tmp_path))


def test_what_failed_is_not_kept(tmp_path: Path) -> None:
    assert results(tmp_path).figure(LABEL, int, lambda: None) is None
    assert not list(tmp_path.iterdir())
