"""What torch.compile cannot do here is said before the work: what was found, what it needs, and what to type."""

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from prunekit.errors import UnsupportedError, UsageError
from prunekit.evaluate import side_by_side
from prunekit.evaluate.compiling import compilation, refuse_without_compiler
from prunekit.evaluate.speed import SpeedOptions
from prunekit.model.loading import Opening


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what its compiler imports
def test_a_missing_compiler_is_a_usage_error_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(side_by_side, "Sessions", None)
    torch.compiler.reset()
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler.*no-such-compiler") as found:
        side_by_side.evaluate(
            ["sample"],
            side_by_side.Questions(
                texts=side_by_side.Texts(["none"]), speed=SpeedOptions(compile=True), opening=Opening(device="cpu")
            ),
        )
    assert found.value.hint == "apt-get install g++ (or name one in the variable CXX), or leave --compile out"


def test_a_model_that_cannot_be_compiled_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match=r"^torch\.compile fails: a graph of its own$") as found, compilation():
        raise TorchDynamoException("a graph of its own\nand a thousand lines about it")
    assert found.value.hint == "leave --compile out"


def test_what_was_compiled_too_often_is_not_run_as_it_is() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)

    def many() -> list[torch.Tensor]:
        return [compiled(torch.zeros(size)) for size in range(2, 40)]

    many()  # torch says nothing, and goes on without compiling
    torch.compiler.reset()
    with pytest.raises(UnsupportedError, match=r"^torch\.compile fails: .*recompile_limit"), compilation():
        many()


def test_what_else_goes_wrong_keeps_its_name() -> None:
    with pytest.raises(ZeroDivisionError), compilation():
        raise ZeroDivisionError


def test_only_an_addition_is_compiled_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    refuse_without_compiler(torch.device("cpu"))
    assert compiled == [torch.add]
