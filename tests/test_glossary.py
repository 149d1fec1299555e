"""One word, one meaning: the glossary names words that are used, and private words stay out."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = [term for row in re.findall(r"^\| (\*\*.+?) \|", PAGE, re.M) for term in re.findall(r"\*\*(.+?)\*\*", row)]
CODE = [*(REPOSITORY / "prunekit").rglob("*.py"), *(REPOSITORY / "methods").rglob("*.py")]
TEXT = [*CODE, *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md", REPOSITORY / "methods" / "README.md"]
PRIVATE = ("lockstep", "shelf", "laboratory", "harm", "standin", "overheard")


@pytest.fixture(scope="module")
def code() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in CODE).lower()


def test_the_glossary_has_terms_each_once() -> None:
    assert len(TERMS) > 30
    assert len(set(TERMS)) == len(TERMS)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_the_glossary_is_a_word_of_the_code(term: str, code: str) -> None:
    assert re.search(rf"\b{re.escape(term.lower()).replace(chr(92) + ' ', '[ _-]')}", code), term


@pytest.mark.parametrize("word", PRIVATE)
def test_a_private_word_is_used_nowhere(word: str) -> None:
    used = [path for path in TEXT if re.search(rf"\b{word}s?\b", path.read_text(encoding="utf-8").lower())]
    assert [str(path.relative_to(REPOSITORY)) for path in used if path.name != "changelog.md"] == []
