"""The most memory that loading a model and generating with it takes, in a process of its own.

    python -m prunekit.evaluate.memory FOLDER '{"device": "cpu", "dtype": "float32", ...}'

On a CPU it is resident memory, from where it stands when all libraries have been used once; on an accelerator it is
what the device's allocator has handed out.
"""

import json
import resource
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prunekit import launch
from prunekit.evaluate.speed import Place, Runner, SpeedOptions
from prunekit.model.checkpoint import Checkpoint

PEAK = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")  # 5 sets the peak to what is resident now


def peak_memory(folder: Path, options: SpeedOptions, place: Place) -> int | None:
    """Bytes, without compilation, whose compiler would be counted, too; None when the process fails."""
    order = asdict(options) | {
        "compile": False,
        "device": str(place.device),
        "dtype": str(place.dtype).removeprefix("torch."),
        "trust_remote_code": place.trust_remote_code,
    }
    done = launch.run_module("prunekit.evaluate.memory", [str(folder), json.dumps(order)])
    with suppress(ValueError, IndexError):
        return int(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    return None


def main() -> None:
    """Measure one folder and print the number."""
    folder, order = Path(sys.argv[1]), json.loads(sys.argv[2])
    place = Place(torch.device(order.pop("device")), getattr(torch, order.pop("dtype")), order.pop("trust_remote_code"))
    with redirect_stdout(sys.stderr):
        used = _measure(folder, SpeedOptions(**order), place)
    print(used)  # noqa: T201


def _measure(folder: Path, options: SpeedOptions, place: Place) -> int:
    _use_the_libraries(options, place)
    accelerator = place.device.type != "cpu"
    if accelerator:
        _reset_device(place.device)
        floor = _allocated(place.device)
    else:
        floor = _reset_resident()
    Runner.load(Checkpoint.open(folder), options, place).run()
    return max(0, (_allocated(place.device) if accelerator else _resident_peak()) - floor)


def _use_the_libraries(options: SpeedOptions, place: Place) -> None:
    """Generate with a model of next to no size, so that what the libraries take is there before the floor is read."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 8}
    length = options.prompt_tokens + options.new_tokens
    tiny: Any = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, max_position_embeddings=length, **size))
    Runner(tiny.to(place.device, place.dtype), options).run()


def _reset_resident() -> int:
    """What is resident now, from which the peak is counted from here on."""
    with suppress(OSError):
        RESET.write_text("5")
    return _resident_peak()


def _resident_peak() -> int:
    """The most bytes that were resident."""
    with suppress(OSError, StopIteration, ValueError):
        line = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_device(device: torch.device) -> None:
    torch.accelerator.reset_peak_memory_stats(device)


def _allocated(device: torch.device) -> int:
    """The most bytes that the device's allocator has handed out."""
    return torch.accelerator.max_memory_allocated(device)


if __name__ == "__main__":
    main()
