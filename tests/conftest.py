"""What every test may ask for: a tiny model folder, and the real data where it is present."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from forks import Server

CACHE = Path(tempfile.mkdtemp(prefix="prunekit-tests-"))
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
for name in [name for name in os.environ if name.startswith("PRUNEKIT_") and name != "PRUNEKIT_TEST_DATA"]:
    del os.environ[name]
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=str(CACHE / "huggingface"),
    PRUNEKIT_CACHE=str(CACHE / "prunekit"),
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # of each worker: more threads than cores wait for each other, actively
)

REPOSITORY = Path(__file__).resolve().parent.parent
END_OF_TEXT = "<|endoftext|>"
LINES = (
    "Once upon a time there was a small model that liked to read.",
    "def prune(weight, ratio):\n    return weight * (weight.abs() > threshold(weight, ratio))",
    "The cat sat on the mat, and the dog sat on the log; 0123456789 is a number.",
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real checkpoints and texts; the test is skipped where it is missing."""
    folder = Path(os.environ.get("PRUNEKIT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "models").is_dir():
        pytest.skip(f"needs real checkpoints: no folder {folder.name}/models; set PRUNEKIT_TEST_DATA to one")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a byte-level BPE tokenizer of 320 tokens; every string can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tmp_path: Path, tiny_tokenizer: Path) -> Callable[..., Path]:
    """`tiny_model(config, name="source", seed=0, dtype="float32", **save)` saves a random causal LM.

    `save` goes to `save_pretrained` (`max_shard_size="40KB"` makes several files); returns the folder.
    """

    def make(
        config: "PretrainedConfig",
        *,
        name: str = "source",
        seed: int = 0,
        dtype: str = "float32",
        **save: Any,
    ) -> Path:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        model.save_pretrained(tmp_path / name, **save)
        shutil.copytree(tiny_tokenizer, tmp_path / name, dirs_exist_ok=True)
        return tmp_path / name

    return make


@pytest.fixture
def tiny_llama(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny_llama(**changes)` saves a random Llama: 4 blocks, hidden 32, 4 heads over 2 KV heads, FFN 64.

    `name`, `seed`, `dtype`, `max_shard_size` go to `tiny_model`; other keywords replace values of the config.
    """

    def make(**changes: Any) -> Path:
        from transformers import LlamaConfig

        rest = {key: changes.pop(key) for key in ("name", "seed", "dtype", "max_shard_size") if key in changes}
        values: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 320,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "initializer_range": 0.2,
        }
        return tiny_model(LlamaConfig(**values | changes), **rest)

    return make


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`launch.run_module` without the seconds of importing: a fork server, begun with its first call."""
    from forks import Server

    servers: list[Server] = []

    def run_module(module: str, words: Any) -> Any:
        if not servers:
            servers.append(Server(tmp_path_factory.mktemp("launcher")))
        return servers[0].run_module(module, words)

    yield run_module
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def launched(request: pytest.FixtureRequest, launcher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that prunekit starts are forked, but in tests that are marked `fresh`."""
    if request.node.get_closest_marker("fresh") is None:
        monkeypatch.setattr("prunekit.launch.run_module", launcher)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """What runs the command line in processes that can be killed."""
    from forks import Server

    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A folder with a random Llama of 4 blocks, `source`, and a text, `text.txt`."""
    import torch
    from transformers import AutoModelForCausalLM

    from families import config

    folder = tmp_path_factory.mktemp("inputs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config("llama", num_hidden_layers=4))
    model.save_pretrained(folder / "source")
    shutil.copytree(tiny_tokenizer, folder / "source", dirs_exist_ok=True)
    (folder / "text.txt").write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    return folder
