"""A report is one page that stands alone, can be read by everybody, and lets nothing it quotes become markup."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from page_checks import check, colours, contrast
from prunekit.compare.table import table_of
from prunekit.evaluate.continuation import Continuation
from prunekit.evaluate.rows import Evaluation
from prunekit.report.content import Report
from prunekit.report.of_evaluation import of_evaluation
from prunekit.report.of_run import of_run
from prunekit.report.of_runs import of_sweep, report_of_runs
from prunekit.report.render import html, markdown
from prunekit.run.sweep import CellResult, Sweep

from .conftest import HOSTILE, folder_of, outcome, row, speed

Made = Callable[[str], Report]
KINDS = ("prune", "zeros", "eval", "compare", "sweep")
PROBE = """
const page = document.documentElement, drawing = document.querySelector('svg[role]')
const drawn = drawing ? drawing.getBoundingClientRect().height > 50 : true
const ground = getComputedStyle(document.body).backgroundColor
document.title = ['seen', page.scrollWidth, page.clientWidth, drawn, ground].join(' ')
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def made(tmp_path: Path, evaluation: Evaluation, said: list[Continuation]) -> Made:
    """`made("eval")` builds a report of that kind."""

    def build(kind: str) -> Report:
        if kind in ("prune", "zeros"):
            folder = folder_of(tmp_path / "out", zeroing=kind == "zeros")
            return of_run(outcome(folder, gates=evaluation.gates), folder, said)
        if kind == "eval":
            return of_evaluation(evaluation, f"prunekit eval {HOSTILE}", said)
        folders = {
            HOSTILE: folder_of(tmp_path / "a"),
            "b": folder_of(tmp_path / "b", zeroing=True, size=200, after=10.5),
        }
        runs = table_of(
            folders, {HOSTILE: row(HOSTILE, 1.2), "b": row("b", 1.05, speed=speed(1.3))}, row("dense", None)
        )
        if kind == "compare":
            return report_of_runs(runs, "prunekit compare a b")
        failed = CellResult(name="c", state="failed", error=HOSTILE, code=3)
        return of_sweep(Sweep(output="out", cells=(failed,), table=runs), "prunekit sweep x.yaml")

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_sound_and_stands_alone(kind: str, made: Made) -> None:
    page = check(html(made(kind)))
    assert HOSTILE in page.all("body")[0].text
    assert not page.all("script")


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_quotes_and_is_no_markup(kind: str, made: Made) -> None:
    text = markdown(made(kind))
    outside = re.sub(r"^ {4}.*$", "", text, flags=re.M)
    assert HOSTILE not in outside and r"\<script\>alert\(1\)\</script\>" in outside
    for line in outside.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3, line


def test_the_page_of_a_run_says_what_was_done_and_shows_the_blocks_that_went(made: Made) -> None:
    report = made("prune")
    assert report.sentence == (
        f"Of {HOSTILE}, shortgpt took 2 of 5 decoder blocks out, which leaves 300 parameters (40.0 % less); "
        f"perplexity on {HOSTILE} went from 10.00 to 12.00 (+20.0 %)."
    )
    titles = [section.title for section in report.filled]
    assert titles == ["Result", "Blocks", "Gates", "Sample", "Verification", "Notes", "Repeat", "Manifest"]
    page = check(html(report))
    assert sum("gone" in shape.attributes.get("class", "") for shape in page.all("rect")) == 2
    assert "block 3" not in page.all("figcaption")[0].text and "2 blocks that went, 1, 3" in page.all("figure")[0].text
    assert "Spectra of the weights" in page.all("body")[0].text
    assert "prunekit prune" in page.all("pre")[-2].text


def test_the_page_of_zeros_shows_how_many_each_block_has(made: Made) -> None:
    page = check(html(made("zeros")))
    figure = next(each for each in page.all("figure") if "Zeros per block" in each.text)
    assert "50 in every block" in figure.text


def test_the_page_of_an_evaluation_holds_every_figure_and_every_limit(made: Made) -> None:
    text = check(html(made("eval"))).all("body")[0].text
    for words in ("22.00", "+10.0 %", "0.1250", "75.0 %", "62.50 %", "1.10 to 1.10", "FAILED", "1,000,000,000"):
        assert words in text, words


def test_the_pictures_of_runs_mark_the_front_and_the_dense_model(made: Made) -> None:
    page = check(html(made("compare")))
    assert len([shape for shape in page.all("circle") if "best" in shape.attributes["class"]]) == 3
    assert len([shape for shape in page.all("path") if shape.attributes.get("class") == "reference"]) == 2
    assert "Quality against speed" in page.all("main")[0].text


def test_speeds_are_drawn_as_multiples_with_their_interval(made: Made) -> None:
    page = check(html(made("compare")))
    figure = next(each for each in page.all("figure") if "Decoding, speed relative to the baseline" in each.text)
    assert "dense x 1" in figure.text and "x 1.20 (1.20 to 1.20)" in figure.text
    assert "tokens/s" not in figure.text
    picture = next(each for each in page.all("figure") if "Quality against speed" in each.text)
    assert "a speed whose interval holds 1 counts as 1" in picture.text


def test_letters_and_drawings_stand_out_in_light_and_dark(made: Made) -> None:
    style = check(html(made("eval"))).all("style")[0].text
    for name, found in colours(style).items():
        for letters in ("ink", "quiet"):
            for ground in ("paper", "panel", "good", "bad"):
                assert contrast(found[letters], found[ground]) >= 4.5, (name, letters, ground)
        for shape in ("bar", "gone", "best", "quiet"):
            assert contrast(found[shape], found["panel"]) >= 3, (name, shape)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_shows_the_page_on_a_phone_and_on_a_desk(kind: str, made: Made, tmp_path: Path) -> None:
    probe = f"<script>addEventListener('load', () => {{{PROBE}}})</script>"
    source = re.sub(r"<meta http-equiv[^>]*>", "", html(made(kind))).replace("</body>", f"{probe}</body>")
    (tmp_path / "probed.html").write_text(source)
    for width, scheme, ground in ((390, 1, "rgb(255, 255, 255)"), (1280, 0, "rgb(18, 22, 28)")):
        seen = browse(tmp_path / "probed.html", width, scheme)
        whole, shown, drawn, colour = re.match(r"seen (\d+) (\d+) (\w+) (.*)", seen).groups()  # type: ignore[union-attr]
        assert int(whole) <= int(shown), f"{kind} is wider than a window of {width}"
        assert (drawn, colour) == ("true", ground)


def browse(page: Path, width: int, scheme: int) -> str:
    """The title that a page gives itself in a window of that width."""
    assert CHROMIUM is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    words += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}"]
    words += ["--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=120, check=True)
    return re.findall("<title>(.*?)</title>", done.stdout)[0]
