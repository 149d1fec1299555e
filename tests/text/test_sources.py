"""Every source a text can come from gives the documents it should, or an error that says what to do."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError, PrunekitError, ResourceError, UsageError
from prunekit.text.datasets import NAMED, HubSpec
from prunekit.text.sources import evaluation_for, load_text, pinned_identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def calibration(source: str | Path, **options: Any) -> list[str]:
    return list(load_text(str(source), split="calibration", **options).documents)


def refused(source: str | Path, kind: type[PrunekitError] = InputError, **options: Any) -> PrunekitError:
    with pytest.raises(kind) as caught:
        load_text(str(source), split="calibration", **options)
    return caught.value


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


Write = Callable[[str, str | bytes], Path]


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


# --- files -----------------------------------------------------------------------------------------------


def test_a_txt_file_is_one_document_taken_as_it_is(write: Write) -> None:
    path = write("a.txt", "one\r\n<|endoftext|>\n two \n")
    text = load_text(str(path), split="evaluation")
    assert list(text.documents) == ["one\r\n<|endoftext|>\n two \n"]
    assert (text.sampling, text.split, text.revision, text.source) == ("stream", "all", None, str(path))


def test_a_byte_order_mark_is_no_text(write: Write) -> None:
    assert calibration(write("a.txt", b"\xef\xbb\xbfhello")) == ["hello"]


def test_jsonl_gives_a_document_per_line_of_objects_or_strings(write: Write) -> None:
    path = write("a.jsonl", '{"text": "one", "n": 1}\n\n"two\u2028still two"\n{"text": null}\n')
    text = load_text(str(path), split="calibration")
    assert list(text.documents) == ["one", "two\u2028still two", ""]
    assert (text.sampling, text.separator) == ("documents", "\n\n")


def test_json_is_a_list_of_strings_or_of_objects(write: Write) -> None:
    assert calibration(write("a.json", '["one", "two"]')) == ["one", "two"]
    assert calibration(write("b.json", '[{"body": "one", "n": 3}]')) == ["one"]


def test_parquet_gives_the_text_column_and_empty_strings_for_nulls(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["one", None, "three"], title=["a", "b", "c"], n=[1, 2, 3])
    assert calibration(path) == ["one", "", "three"]
    assert calibration(path, column="title") == ["a", "b", "c"]
    assert load_text(str(path), split="calibration").documents[2] == "three"


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path: Path, write: Write) -> None:
    write("d/b.txt", "b")
    write("d/a/z.jsonl", '{"text": "z1"}\n{"text": "z2"}\n')
    write("d/.hidden/x.txt", "no")
    write("d/notes.md", "no")
    write_parquet(tmp_path / "d" / "c.parquet", text=["c"])
    assert calibration(tmp_path / "d") == ["z1", "z2", "b", "c"]


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("piped é\n".encode())))
    text = load_text("-", split="calibration")
    assert (list(text.documents), text.sampling) == (["piped é\n"], "stream")


def test_the_limit_keeps_the_first_documents(write: Write) -> None:
    assert calibration(write("a.json", '["one", "two", "three"]'), limit=2) == ["one", "two"]


def test_the_sample_is_the_standard_library_with_its_python_as_revision() -> None:
    text = load_text("sample", split="evaluation")
    assert text.split == "held-out"
    assert any("class ArgumentParser" in document for document in text.documents)
    assert text.revision
    assert text.revision.endswith(".".join(map(str, sys.version_info[:3])))


# --- what is wrong with a file ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.json"])
def test_an_empty_file_is_refused(name: str, write: Write) -> None:
    assert "is empty" in refused(write(name, " \n")).message


def test_a_file_of_empty_documents_holds_no_text(tmp_path: Path, write: Write) -> None:
    assert "holds no text" in refused(write("a.jsonl", '{"text": ""}\n')).message
    assert "holds no text" in refused(write_parquet(tmp_path / "a.parquet", text=["", None])).message


def test_undecodable_bytes_are_named_with_their_offset(write: Write) -> None:
    error = refused(write("a.txt", b"caf\xe9 au lait"))
    assert "is not UTF-8: byte 0xe9 at offset 3" in error.message
    assert "iconv" in str(error.hint)


def test_bad_json_is_named_with_its_line(write: Write) -> None:
    assert "line 3, column 10 is not JSON" in refused(write("a.jsonl", '"one"\n\n{"text": }\n')).message
    assert "line 2, column 2 is not JSON" in refused(write("a.json", '["one",\n oops]')).message


def test_json_that_is_no_list_of_texts_is_refused(write: Write) -> None:
    assert "holds a JSON dict" in refused(write("a.json", '{"text": "one"}')).message
    assert "item 2 is a JSON int" in refused(write("b.json", '["one", 2]')).message
    assert "line 1 is a JSON list" in refused(write("a.jsonl", "[1]")).message
    assert "surrogate" in refused(write("b.jsonl", '"\\ud800"')).message


def test_deeply_nested_json_is_an_input_error(write: Write) -> None:
    assert "cannot be read as JSON" in refused(write("a.json", "[" * 200_000)).message


def test_a_wrong_column_is_named_beside_those_found(write: Write) -> None:
    path = write("a.jsonl", '{"body": "one", "n": 1}\n')
    error = refused(path, column="bdy")
    assert "no column 'bdy'; found: body, n" in error.message
    assert error.hint == "--calib-column body"
    assert "column 'n'" in refused(path, column="n").message


def test_several_columns_of_text_need_a_choice(tmp_path: Path, write: Write) -> None:
    error = refused(write("a.jsonl", '{"question": "a", "answer": "b"}\n'))
    assert "several columns of text; found: question, answer" in error.message
    assert "--calib-column" in str(error.hint)
    assert "no column of text; found: n" in refused(write_parquet(tmp_path / "a.parquet", n=[1])).message


def test_a_row_without_the_column_is_named(write: Write) -> None:
    assert "line 2 has no column 'text'" in refused(write("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n')).message


def test_a_damaged_parquet_file_is_refused(write: Write) -> None:
    assert "as Parquet" in refused(write("a.parquet", b"PAR1 nonsense PAR1")).message


def test_an_unknown_extension_is_refused_with_the_known_ones(write: Write) -> None:
    error = refused(write("a.md", "hello"))
    assert "ends in .md; expected one of .txt .jsonl .json .parquet" in error.message


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    assert "no text in the folder" in refused(tmp_path).message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.txt")
    assert error.exit_code == 4
    assert "no such text file" in error.message


@pytest.mark.parametrize(("name", "near"), [("wikitext", "wikitext2"), ("C4", "c4"), ("apaca", "alpaca")])
def test_an_unknown_name_offers_the_nearest(name: str, near: str) -> None:
    error = refused(name)
    assert (error.exit_code, error.hint) == (4, f"did you mean {near}?")


def test_a_name_like_no_other_lists_what_is_possible() -> None:
    assert "wikitext2, c4, ptb" in str(refused("qqqqq").hint)


def test_empty_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert "standard input holds no text" in refused("-").message


# --- named sets ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, list[str]], None]:
    """Puts a file of a named set where the hub's own library keeps it, so that it is found without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")

    def put(name: str, file: str, rows: list[str]) -> None:
        named = NAMED[name]
        folder = tmp_path / "hub" / f"datasets--{named.repo.replace('/', '--')}" / "snapshots" / named.revision
        if file.endswith(".parquet"):
            write_parquet(folder / file, **{named.column: rows})
            return
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({named.column: row, "url": "u", "timestamp": "2019-04-25T12:57:54Z"}) for row in rows]
        (folder / file).write_bytes(gzip.compress("\n".join(lines).encode()))

    return put


Hub = Callable[[str, str, list[str]], None]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_set_is_read_at_its_pinned_commit(name: str, hub: Hub) -> None:
    hub(name, NAMED[name].calibration.file, ["one", "", "three"])
    text = load_text(name, split="calibration", offline=True)
    assert list(text.documents) == ["one", "", "three"]
    assert text.documents[2] == "three"
    assert (text.source, text.revision) == (name, NAMED[name].revision)
    assert text.identity() == pinned_identity(name, split="calibration")


@pytest.mark.parametrize(
    ("name", "calibration_join", "sampling", "split", "join", "bound"),
    [
        ("wikitext2", " ", "stream", "test", "\n\n", None),
        ("ptb", " ", "stream", "test", " ", None),
        ("c4", "\n\n", "documents", "validation", " ", 256),
    ],
)
def test_named_sets_are_joined_as_the_reference_code_joins_them(
    name: str, calibration_join: str, sampling: str, split: str, join: str, bound: int | None, hub: Hub
) -> None:
    evaluation = NAMED[name].evaluation
    assert evaluation is not None
    hub(name, NAMED[name].calibration.file, ["a", "b"])
    hub(name, evaluation.file, ["c", "d"])
    drawn, measured = load_text(name, split="calibration"), load_text(name, split="evaluation")
    assert (drawn.joined(), drawn.sampling) == (calibration_join.join("ab"), sampling)
    assert (measured.joined(), measured.split, measured.max_windows) == (join.join("cd"), split, bound)


def test_c4_is_evaluated_on_its_first_1100_documents(hub: Hub) -> None:
    evaluation = NAMED["c4"].evaluation
    assert evaluation is not None
    hub("c4", evaluation.file, [str(number) for number in range(1200)])
    text = load_text("c4", split="evaluation")
    assert (len(text.documents), text.documents[-1]) == (1100, "1099")


@pytest.mark.parametrize("name", ["alpaca", "pile"])
def test_sets_without_a_held_out_part_are_not_evaluated_on(name: str) -> None:
    with pytest.raises(UsageError, match="calibration only") as caught:
        load_text(name, split="evaluation")
    assert "wikitext2 c4 ptb" in str(caught.value.hint)


@pytest.mark.parametrize("offline", [True, False])
def test_a_set_that_is_neither_cached_nor_reachable_is_an_input_error(offline: bool, hub: Hub) -> None:
    error = refused("wikitext2", offline=offline)
    assert error.exit_code == 4
    assert "not in the cache on this machine, and the hub is out of reach" in error.message
    assert "--calib FILE" in str(error.hint)


def test_a_named_set_lets_its_column_be_chosen(hub: Hub) -> None:
    hub("wikitext2", NAMED["wikitext2"].calibration.file, ["a"])
    assert "no column 'page'; found: text" in refused("wikitext2", column="page").message


def test_a_full_disk_is_a_resource_error(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    hub("wikitext2", NAMED["wikitext2"].calibration.file, ["a"])

    def full(*_: Any, **__: Any) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as cause:
            raise RuntimeError("generation failed") from cause

    monkeypatch.setattr("datasets.load_dataset", full)
    assert "disk is full" in refused("wikitext2", ResourceError).message


@pytest.mark.parametrize(
    ("source", "measured"),
    [
        ("c4", "c4"),
        ("sample", "sample"),
        ("alpaca", "wikitext2"),
        ("hf:org/set:train:text", "wikitext2"),
        ("notes.txt", "notes.txt"),
        ("-", "sample"),
    ],
)
def test_a_calibration_text_has_a_text_to_measure_on(source: str, measured: str) -> None:
    assert evaluation_for(source) == measured


# --- any data set on the hub -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ("hf:org/set:train:text", HubSpec("org/set", None, None, "train", "text")),
        ("hf:org/set:en:test:body", HubSpec("org/set", None, "en", "test", "body")),
        ("hf:set@v1:train[:10]:text", HubSpec("set", "v1", None, "train[:10]", "text")),
    ],
)
def test_a_hub_source_is_taken_apart(source: str, spec: HubSpec) -> None:
    assert HubSpec.parse(source) == spec


@pytest.mark.parametrize("source", ["hf:org/set", "hf:org/set:train", "hf::train:text", "hf:a:b:c:d:e", "hf:"])
def test_a_malformed_hub_source_is_a_usage_error(source: str) -> None:
    assert "hf:REPO[@REVISION][:CONFIG]:SPLIT:COLUMN" in refused(source, UsageError).message


def load_as(monkeypatch: pytest.MonkeyPatch, folder: Path, **columns: list[Any]) -> list[Any]:
    """Let `load_dataset` answer with a real data set kept in `folder`, and note how it was called."""
    import datasets

    rows = datasets.Dataset.from_dict(columns)
    rows.save_to_disk(folder)
    calls: list[Any] = []

    def answer(*args: Any, **keywords: Any) -> Any:
        calls.append((args, keywords))
        return datasets.load_from_disk(folder)

    monkeypatch.setattr("datasets.load_dataset", answer)
    return calls


def test_a_hub_source_is_loaded_by_its_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = load_as(monkeypatch, tmp_path / "set", body=["one", "two"], n=[1, 2])
    text = load_text(f"hf:org/set@{COMMIT}:en:test:body", split="calibration")
    assert calls == [(("org/set", "en"), {"split": "test", "revision": COMMIT})]
    assert (list(text.documents), text.split, text.revision) == (["one", "two"], "test", COMMIT)
    assert text.identity() == pinned_identity(text.source, split="calibration")


def test_the_commit_that_was_read_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_as(monkeypatch, tmp_path / "org___set" / "default" / "0.0.0" / COMMIT, text=["one"])
    text = load_text("hf:org/set:train:text", split="calibration")
    assert text.revision == COMMIT
    assert text.pinned is None


def test_another_commit_than_the_one_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_as(monkeypatch, tmp_path / "org___set" / "default" / "0.0.0" / COMMIT, text=["one"])
    assert f"at commit {COMMIT}, not" in refused(f"hf:org/set@{COMMIT[::-1]}:train:text", offline=True).message


def test_a_hub_source_with_a_wrong_column_lists_those_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_as(monkeypatch, tmp_path / "set", body=["one"], n=[1])
    assert "no column 'text'; found: body, n" in refused("hf:org/set:train:text").message
    assert "does not hold text" in refused("hf:org/set:train:n").message


def test_an_empty_data_set_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    empty = datasets.Dataset.from_dict({"text": []}, features=datasets.Features({"text": datasets.Value("string")}))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: empty)
    assert "holds no documents" in refused("hf:org/set:train:text").message


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_source_out_of_reach_is_an_input_error(offline: bool) -> None:
    error = refused("hf:nobody/nothing:train:text", offline=offline)
    assert error.exit_code == 4
    assert "cannot get the data set nobody/nothing" in error.message


def test_the_libraries_are_left_as_they_were(hub: Hub) -> None:
    import datasets
    import huggingface_hub.utils as hub_utils

    def state() -> tuple[Any, ...]:
        return (
            datasets.config.HF_HUB_OFFLINE,
            datasets.logging.get_verbosity(),
            hub_utils.logging.get_verbosity(),
            datasets.are_progress_bars_disabled(),
            hub_utils.are_progress_bars_disabled(),
        )

    before = state()
    refused("wikitext2", offline=True)
    assert state() == before


# --- identity and weight ---------------------------------------------------------------------------------


def test_the_identity_follows_the_content_and_not_the_name(write: Write) -> None:
    first, same = write("a.json", '["one", "two"]'), write("b.jsonl", '"one"\n"two"')
    other, joined = write("c.json", '["one", "twO"]'), write("d.json", '["onetwo"]')
    names = [load_text(str(path), split="calibration").identity() for path in (first, same, other, joined)]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_importing_the_module_loads_no_heavy_library() -> None:
    program = (
        "import sys, prunekit.text.sources; "
        "print([m for m in ('torch', 'datasets', 'transformers', 'pyarrow', 'huggingface_hub') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
