"""Whatever a user gets wrong, from an option to a weight: one line that says what, a code, and no trace left."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from families import config
from prunekit.cli.app import app
from prunekit.contract import Allocator, Budget, Context, Method, Needs
from prunekit.plan import PrunePlan
from prunekit.recipe import registry

USAGE, UNSUPPORTED, INPUT = 2, 3, 4
KINDS = {USAGE: ("usage", "recipe"), UNSUPPORTED: ("unsupported",), INPUT: ("input",)}
WANDA = ("-m", "wanda", "-r", "0.5")
MAGNITUDE = ("-m", "magnitude", "-r", "0.5", "--no-eval-quick")
TEXT = "Once upon a time there was a small model that liked to read.\n"
Model = Callable[..., Path]
Refused = Callable[..., None]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(work: Path) -> Refused:
    """`refused(*words, code=2, says=..., hint=...)` runs a command with and without `--json` and checks how it ends."""

    def check(*words: object, code: int, says: str, hint: str | None = None, stdin: str | bytes = "") -> None:
        plain, as_json = (run(*words, *extra, stdin=stdin) for extra in ([], ["--json"]))
        for result in (plain, as_json):
            assert result.exit_code == code, result.output
            assert "Traceback" not in result.output
            errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
            hints = [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
            assert len(errors) == 1 and says in errors[0], result.stderr
            assert hint is None or (len(hints) == 1 and hint in hints[0]), result.stderr
        assert plain.stdout == ""
        check_object(as_json.stdout, code, says, hint)
        assert list(work.iterdir()) == []

    return check


def run(*words: object, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def check_object(stdout: str, code: int, says: str, hint: str | None) -> None:
    """Standard output is one JSON object, on one line, that says the same as the lines for people."""
    assert stdout.count("\n") == 1 and stdout.endswith("\n")
    error = json.loads(stdout)["error"]
    assert error.keys() == {"code", "kind", "message", "hint"}
    assert error["code"] == code and error["kind"] in KINDS[code]
    assert says in error["message"] and (hint is None or hint in error["hint"])


FRACTION = "a number above 0 and below 1"
OPTIONS: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "unknown method": (("-m", "wandaa", "-r", "0.5"), "no method or allocator is called 'wandaa'", "wanda?"),
    "unlike any method": (("-m", "qqq", "-r", "0.5"), "there are ", "prunekit methods"),
    "unknown allocator": ((*WANDA, "--allocator", "unifrom"), "no allocator is called 'unifrom'", "uniform?"),
    "no method": (("-r", "0.5"), "no method is given", "--method"),
    "no ratio": (("-m", "wanda"), "no ratio is given", "--ratio"),
    **{
        f"ratio {ratio}": (("-m", "wanda", f"--ratio={ratio}"), f"--ratio is {ratio}; expected {FRACTION}", None)
        for ratio in ("0", "1", "1.2", "-0.5", "abc", "50%", "nan", "inf")
    },
    **{
        f"pattern {pattern}": (("-m", "wanda", "--pattern", pattern), f"pattern '{pattern}' is not", "2:4")
        for pattern in ("3:2", "4:4", "0:4", "2-4", "dense")
    },
    "ratio and pattern": (("-m", "wanda", "-r", "0.3", "--pattern", "2:4"), "ratio 0.3 contradicts pattern 2:4", "0.5"),
    "unknown flag": ((*WANDA, "--ration", "3"), "no such option: --ration", None),
    "unknown option of the method": ((*WANDA, "--set", "varaint=true"), "wanda has no option 'varaint'", "variant?"),
    "option out of bounds": (
        ("-m", "sparsegpt", "-r", "0.5", "--set", "dampening=-1"),
        "sparsegpt: option dampening is -1; expected a number above 0",
        "prunekit methods sparsegpt",
    ),
    "--set without a value": ((*WANDA, "--set", "variant"), "--set 'variant' is not key=value", "="),
    "no samples": ((*WANDA, "--samples", "0"), "--samples is 0; expected a whole number of at least 1", None),
    "one token": ((*WANDA, "--seq-len", "1"), "--seq-len is 1; expected a whole number of at least 2", None),
    "unknown dtype": ((*WANDA, "--dtype", "float64"), "--dtype is float64; expected auto, float32", None),
    "unknown protocol": ((*WANDA, "--protocol", "gptq"), "--protocol is gptq; expected sparsegpt", None),
    "unknown verification": ((*WANDA, "--verify", "maybe"), "--verify is maybe; expected auto", None),
    "shard size": ((*WANDA, "--max-shard-size", "big"), "--max-shard-size is big; expected a text such as 500MB", None),
}


@pytest.mark.parametrize(("words", "says", "hint"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_wrong_option_is_a_usage_error(words: tuple[str, ...], says: str, hint: str | None, refused: Refused) -> None:
    refused("prune", "sample", *words, code=USAGE, says=says, hint=hint)


def test_a_command_without_a_model_is_a_usage_error(refused: Refused) -> None:
    refused("prune", *WANDA, code=USAGE, says="no model is given", hint="prunekit prune sample")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu9"])
def test_a_device_that_is_not_there_is_a_usage_error(device: str, refused: Refused) -> None:
    says = f"device '{device}' is not available here"
    refused("prune", "sample", *WANDA, "--device", device, code=USAGE, says=says, hint="prunekit doctor")
    refused("eval", "sample", "--device", device, code=USAGE, says=says, hint="prunekit doctor")


def test_a_wrong_option_of_eval_is_a_usage_error(refused: Refused) -> None:
    refused("eval", "sample", "--dtype", "foo", code=USAGE, says="--dtype is foo; expected auto, float32")
    refused("eval", "sample", "--offload", "foo", code=USAGE, says="--offload is foo; expected memory or disk")
    says = "device 'foo' is not available here; expected auto, cpu, cuda, cuda:N or mps"
    refused("eval", "sample", "--device", "foo", code=USAGE, says=says, hint="prunekit doctor")
    says = "no protocol is called 'foo'; expected one of: sparsegpt, wanda, llm-pruner"
    refused("eval", "sample", "--protocol", "foo", code=USAGE, says=says, hint="--protocol sparsegpt")


RECIPES: dict[str, tuple[bytes, str, str | None]] = {
    "unknown key": (b"method: wanda\nratoi: 0.5\n", "unknown key 'ratoi'", "did you mean ratio?"),
    "unknown inner key": (b"calibration: {sampels: 3}\n", "unknown key 'calibration.sampels'", "calibration.samples"),
    "Python tag": (b"method: !!python/object/apply:os.mkdir [hit]\n", "line 1: the tag !!python/object/apply", None),
    "wrong value": (b"method: wanda\nratio: half\n", f"ratio is half; expected {FRACTION}", None),
    "key twice": (b"ratio: 0.5\nratio: 0.6\n", "line 2: the key ratio stands twice", None),
    "not YAML": (b"method: [wanda\n", "recipe.yaml, line 2", None),
    "a list": (b"- wanda\n", "a mapping of settings was expected", "prunekit recipe init"),
    "not UTF-8": (b"method: \xff\xfe\n", "is not UTF-8 text", None),
}


@pytest.mark.parametrize(("content", "says", "hint"), RECIPES.values(), ids=RECIPES.keys())
def test_a_wrong_recipe_is_refused_by_its_line_or_key(
    content: bytes, says: str, hint: str | None, refused: Refused, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    refused("prune", "sample", "--recipe", file, code=USAGE, says=says, hint=hint)


def test_a_missing_recipe_is_refused(refused: Refused) -> None:
    words = ("prune", "sample", "--recipe", "no.yaml")
    refused(*words, code=USAGE, says="cannot read the recipe no.yaml", hint="prunekit recipe init")


class Whole(Method):
    """A method that prunes no single weights."""

    name = "whole"
    paper = "none"
    needs = Needs()

    def plan(self, ctx: Context) -> PrunePlan:
        raise AssertionError

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        raise AssertionError


class Uneven(Allocator):
    """An allocator that gives every linear something else."""

    name = "uneven"
    paper = "none"

    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        change = {"q_proj": 0.1, "o_proj": -0.1}  # of the same size in the tiny Llama
        return {path: sparsity + change.get(path.rpartition(".")[2], 0) for path in ctx.model.linears()}


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the two plug-ins above."""
    from importlib.metadata import EntryPoint, entry_points

    added = {
        "prunekit.methods": EntryPoint("whole", f"{__name__}:Whole", "prunekit.methods"),
        "prunekit.allocators": EntryPoint("uneven", f"{__name__}:Uneven", "prunekit.allocators"),
    }
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [*entry_points(group=group), *filter(None, [added.get(group)])]
    )


def test_an_allocator_for_a_method_that_takes_none_is_a_usage_error(plugins: None, refused: Refused) -> None:
    says = "whole takes no budget, so the allocator uneven has nothing to do"
    words = ("prune", "sample", "-m", "whole", "-r", "0.5")
    refused(*words, "--allocator", "uneven", code=USAGE, says=says, hint="--allocator")
    refused(*words[:-2], "--pattern", "2:4", code=USAGE, says="whole prunes no single weights, so pattern 2:4")


def test_unequal_sparsities_contradict_a_pattern(plugins: None, refused: Refused, tiny_llama: Model) -> None:
    words = ("prune", tiny_llama(), "-m", "magnitude", "--pattern", "2:4", "--allocator", "uneven")
    refused(*words, code=USAGE, says="pattern 2:4 fixes one sparsity for all linears", hint="--allocator uniform")


def test_a_pattern_that_does_not_divide_the_inputs_is_a_usage_error(refused: Refused, tiny_llama: Model) -> None:
    words = ("prune", tiny_llama(intermediate_size=60), "-m", "magnitude", "--pattern", "4:8")
    refused(*words, code=USAGE, says="down_proj has 60 inputs, which pattern 4:8 cannot divide")


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = torch.nan


def to_fp8(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.3.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def pack(tensors: dict[str, torch.Tensor]) -> None:
    weight = tensors.pop("model.layers.0.mlp.up_proj.weight")
    tensors["model.layers.0.mlp.up_proj.qweight"] = weight.to(torch.int32)


BROKEN: dict[str, tuple[Callable[[Path], object], int, str, str | None]] = {
    "no folder": (shutil.rmtree, INPUT, "source does not exist", "hub id"),
    "no config": (lambda folder: (folder / "config.json").unlink(), INPUT, "no config.json", "config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), INPUT, "is not readable JSON", None),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        INPUT,
        "holds no model.safetensors",
        "fetch",
    ),
    "truncated": (truncate, INPUT, "model.safetensors is not a complete safetensors file", "fetch"),
    "a tensor is missing": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.gate_proj.weight")),
        INPUT,
        "model.layers.1.mlp.gate_proj.weight",
        None,
    ),
    "a shape does not fit": (
        lambda folder: edit_config(folder, intermediate_size=72),
        INPUT,
        "model.layers.0.mlp.gate_proj.weight is stored as (64, 32); expected (72, 32)",
        "config.json",
    ),
    "FP8": (
        lambda folder: edit_weights(folder, to_fp8),
        UNSUPPORTED,
        "model.layers.3.mlp.down_proj.weight is F8_E4M3; prunekit prunes F32, BF16 and F16",
        "unquantised",
    ),
    "GPTQ by its config": (
        lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        UNSUPPORTED,
        "quantised (gptq)",
        "unquantised",
    ),
    "GPTQ by its tensors": (
        lambda folder: edit_weights(folder, pack),
        UNSUPPORTED,
        "up_proj.qweight is I32; prunekit prunes",
        "unquantised",
    ),
    "pickles": (pickle_only, UNSUPPORTED, "pickles (pytorch_model.bin)", "save_pretrained("),
    "encoder": (
        lambda folder: edit_config(folder, architectures=["BertForMaskedLM"], model_type="bert"),
        UNSUPPORTED,
        "BertForMaskedLM is not a causal language model",
        None,
    ),
    "unknown model type": (
        lambda folder: edit_config(folder, model_type="llamma", architectures=None),
        UNSUPPORTED,
        "model type 'llamma' is not a causal language model",
        None,
    ),
    "code of its own": (
        lambda folder: edit_config(folder, model_type="own", auto_map={"AutoModelForCausalLM": "own.Own"}),
        UNSUPPORTED,
        "own brings its own code",
        "--trust-remote-code",
    ),
}


@pytest.mark.parametrize(("damage", "code", "says", "hint"), BROKEN.values(), ids=BROKEN.keys())
def test_a_model_that_cannot_be_pruned_is_refused_with_the_reason(
    damage: Callable[[Path], object], code: int, says: str, hint: str | None, refused: Refused, tiny_llama: Model
) -> None:
    folder = tiny_llama()
    damage(folder)
    refused("prune", folder, *MAGNITUDE, code=code, says=says, hint=hint)


def test_nan_in_the_weights_is_an_input_error_that_names_the_tensor(
    refused: Refused, work: Path, tiny_llama: Model, tmp_path: Path
) -> None:
    folder = tiny_llama()
    edit_weights(folder, set_nan)
    (tmp_path / "a.txt").write_text(TEXT * 99)
    says = "model.layers.2.mlp.up_proj.weight in model.safetensors has NaN or infinite values"
    measured = ("prune", folder, *MAGNITUDE[:4], "--ppl", tmp_path / "a.txt", "--eval-windows", "1")
    refused(*measured, code=INPUT, says=says, hint="fetch")
    assert run("prune", folder, *MAGNITUDE, "-o", "out").exit_code == INPUT
    assert [path.name for path in work.iterdir()] == [".out.prunekit"], "the two blocks before it are finished"


def test_a_shard_outside_the_folder_or_missing_is_refused(refused: Refused, tiny_llama: Model) -> None:
    folder = tiny_llama(max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"]["model.norm.weight"]
    (folder / shard).rename(folder.parent / shard)
    refused("prune", folder, *MAGNITUDE, code=INPUT, says=f"{shard} is missing", hint="fetch")
    content["weight_map"]["model.norm.weight"] = f"../{shard}"
    index.write_text(json.dumps(content))
    refused("prune", folder, *MAGNITUDE, code=INPUT, says=f"places model.norm.weight in '../{shard}'")


def test_fused_experts_are_refused_by_name(refused: Refused, tiny_model: Model) -> None:
    says = "model.layers.0.mlp.experts.gate_up_proj (4, 128, 32) is not a plain linear"
    refused("prune", tiny_model(config("mixtral")), *MAGNITUDE, code=UNSUPPORTED, says=says)


def test_an_encoder_only_model_is_refused(refused: Refused, tmp_path: Path) -> None:
    small = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.BertForMaskedLM(small).save_pretrained(tmp_path / "bert")
    says = "BertForMaskedLM is not a causal language model"
    refused("prune", tmp_path / "bert", *MAGNITUDE, code=UNSUPPORTED, says=says)
    refused("inspect", tmp_path / "bert", code=UNSUPPORTED, says=says)


def test_an_encoder_decoder_is_refused(refused: Refused, tmp_path: Path) -> None:
    small = transformers.T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(small).save_pretrained(tmp_path / "t5")
    refused("prune", tmp_path / "t5", *MAGNITUDE, code=UNSUPPORTED, says="t5 is an encoder-decoder")


def test_conv1d_of_gpt2_is_pruned_like_any_linear(work: Path, tiny_model: Model) -> None:
    result = run("prune", tiny_model(config("gpt2")), *MAGNITUDE, "--verify", "off", "-o", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["sparsity"] == pytest.approx(0.5, abs=1e-3)
    loaded: Any = transformers.GPT2LMHeadModel.from_pretrained(work / "out", output_loading_info=True)
    model, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for block in model.transformer.h:
        for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            assert (linear.weight == 0).float().mean().item() == pytest.approx(0.5, abs=2e-3)


def test_a_hub_id_that_is_not_cached_cannot_be_had_offline(refused: Refused) -> None:
    words = ("prune", "nobody/no-such-model", *WANDA, "--offline")
    refused(*words, code=INPUT, says="nobody/no-such-model", hint="hf download nobody/no-such-model")
    refused("eval", "nobody/no-such-model", "--offline", code=INPUT, says="nobody/no-such-model")


def test_a_tokenizer_that_a_calibrated_method_lacks_is_an_input_error(refused: Refused, tiny_llama: Model) -> None:
    folder = tiny_llama()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    says = "has no tokenizer, and wanda needs a calibration set"
    refused("prune", folder, *WANDA, "--calib", "sample", code=INPUT, says=says, hint="tokenizer")
    refused("eval", folder, "--ppl", "sample", code=INPUT, says="has no tokenizer")


TEXTS: dict[str, tuple[str, bytes, tuple[str, ...], str, str | None]] = {
    "too little": ("a.txt", TEXT.encode(), ("--seq-len", "64"), "expected more than 64 for one sample", "--seq-len"),
    "empty": ("a.txt", b"", (), "a.txt is empty", None),
    "blank": ("a.txt", b" \n\n", (), "a.txt is empty", None),
    "undecodable": ("a.txt", b"caf\xe9 " * 99, (), "a.txt is not UTF-8: byte 0xe9 at offset 3", "iconv"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n{"text"\n', (), "a.jsonl, line 2", None),
    "wrong column": (
        "a.jsonl",
        b'{"text": "a"}\n',
        ("--calib-column", "body"),
        "has no column 'body'; found: text",
        None,
    ),
    "several columns": ("a.jsonl", b'{"a": "1", "b": "2"}\n', (), "several columns of text; found: a, b", "column"),
    "unknown kind": ("a.docx", b"PK", (), "ends in .docx; expected one of .txt", None),
    "no Parquet": ("a.parquet", b"PAR1", (), "as Parquet", None),
}


@pytest.mark.parametrize(("name", "content", "words", "says", "hint"), TEXTS.values(), ids=TEXTS.keys())
def test_a_text_that_cannot_calibrate_is_an_input_error(
    name: str,
    content: bytes,
    words: tuple[str, ...],
    says: str,
    hint: str | None,
    refused: Refused,
    tiny_llama: Model,
    tmp_path: Path,
) -> None:
    (tmp_path / name).write_bytes(content)
    refused("prune", tiny_llama(), *WANDA, "--calib", tmp_path / name, *words, code=INPUT, says=says, hint=hint)


def test_a_text_that_is_not_there_is_an_input_error(refused: Refused, tiny_llama: Model) -> None:
    folder = tiny_llama()
    refused("prune", folder, *WANDA, "--calib", "no.txt", code=INPUT, says="no such text file or folder: no.txt")
    refused("prune", folder, *WANDA, "--calib", "wikitext", code=INPUT, says="no text is called", hint="wikitext2?")
    refused("prune", folder, *WANDA, "--calib", "-", code=INPUT, says="standard input holds no text")
    refused("prune", folder, *MAGNITUDE[:4], "--ppl", "no.txt", code=INPUT, says="no such text file or folder: no.txt")


def test_a_text_that_was_asked_for_and_fills_no_window_is_an_input_error(
    refused: Refused, tiny_llama: Model, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(TEXT)
    words = ("prune", tiny_llama(), *MAGNITUDE[:4], "--offline", "--ppl")
    refused(*words, tmp_path / "short.txt", code=INPUT, says="expected at least 128", hint="--no-eval-quick")
    refused(*words, "wikitext2", code=INPUT, says="wikitext2", hint="--no-eval-quick")
    (tmp_path / "a.jsonl").write_text('{"a": "1", "b": "2"}\n')
    refused(*words, tmp_path / "a.jsonl", code=INPUT, says="several columns of text", hint="prunekit eval OUT --ppl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (MAGNITUDE[:4], "cannot get the data set wikitext2"),
        ((*WANDA, "--calib", "../short.txt", "--seq-len", "16"), "short.txt has "),
    ],
)
def test_a_text_that_nobody_asked_for_does_not_end_a_run(
    words: tuple[str, ...], said: str, work: Path, tiny_llama: Model, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(TEXT * 3)
    result = run("prune", tiny_llama(), *words, "--offline", "--verify", "off", "-o", "out", "--json")
    notes = [line for line in result.stderr.splitlines() if "perplexity was not measured" in line]
    found = json.loads(result.stdout)

    assert result.exit_code == 0, result.stderr
    assert found["perplexity"] is None
    assert len(notes) == 1 and said in notes[0]
    assert notes[0].endswith("; --ppl FILE chooses a text, --no-eval-quick silences this")
    assert notes == [f"note: {note}" for note in found["notes"] if "perplexity was not measured" in note]
    assert "short.txt" not in json.dumps(json.loads((work / "out" / "prunekit.json").read_text())["notes"])


def test_a_text_in_another_encoding_is_refused_on_standard_input(refused: Refused, tiny_llama: Model) -> None:
    words = ("prune", tiny_llama(), *WANDA, "--calib", "-")
    refused(*words, code=INPUT, says="standard input is not UTF-8: byte 0xff at offset 0", stdin=b"\xff\xfea")


def test_a_tokenizer_of_another_model_is_an_input_error(refused: Refused, tiny_llama: Model, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 99)
    folder = tiny_llama(vocab_size=64)
    words = ("prune", folder, *WANDA, "--calib", tmp_path / "a.txt", "--seq-len", "16")
    refused(*words, code=INPUT, says="the model's vocabulary has 64 tokens", hint="tokenizer")


def test_a_plan_that_is_none_is_an_input_error(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    refused(
        "apply", tmp_path / "plan.json", code=INPUT, says="plan.json is not a prunekit plan: ", hint="prunekit plan"
    )
    refused("apply", "no.json", code=INPUT, says="cannot read the plan no.json", hint="prunekit plan")


def test_an_output_that_exists_is_a_usage_error_and_kept(refused: Refused, tiny_llama: Model, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("mine")
    refused("prune", tiny_llama(), *MAGNITUDE, "-o", target, code=USAGE, says="out exists already", hint="--force")
    assert [file.name for file in target.iterdir()] == ["mine"]


def test_every_command_refuses_a_folder_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    for command in ("eval", "inspect", "verify"):
        refused(command, tmp_path / "absent", code=INPUT, says="absent")
