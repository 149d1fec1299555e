"""A model that several processes train together: each keeps a share of every weight (FSDP2).

A block is whole in each process while it is run. Gradients are averaged over the processes as they are shared out
again. Of one process, everything here leaves everything as it is.
"""

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from prunekit import distributed


def spread(model: PreTrainedModel, stack_path: str, device: torch.device) -> None:
    """Share all parameters of a model out; whichever are to be trained must be known by then."""
    if distributed.size() == 1:
        return
    mesh = init_device_mesh(device.type, (distributed.size(),))
    for block in model.get_submodule(stack_path).children():
        fully_shard(block, mesh=mesh)
    root = fully_shard(model, mesh=mesh)
    with torch.no_grad():  # the first pass tells who is the root, and must find the blocks themselves in their places
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    root.set_reshard_after_forward(True)  # weights may change between two passes, so none stays whole after one
    root.reshard()


def own(tensor: Tensor) -> Tensor:
    """The share of a tensor that this process keeps."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is shared out; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """All of a tensor, on the CPU of the first process; the others get nothing, but must ask as well.

    A plain tensor may be this process's share of something that is shared out `like` another.
    """
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(
            tensor.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if distributed.is_first() else full.new_empty(0)


def scattered(tensor: Tensor | None, like: Tensor) -> Tensor:
    """The first process's tensor, shared out `like` another; the others have None."""
    if not isinstance(like, DTensor):
        assert tensor is not None
        return tensor.to(like.device)
    full = torch.empty(like.shape, dtype=like.dtype) if tensor is None else tensor
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state by name, whole in the first process; see `gathered`."""
    return {name: gathered(tensor) for name, tensor in model.state_dict().items()}


def parts(rows: Tensor, most: int) -> Iterator[tuple[Tensor, int]]:
    """This process's share of some sequences, at most so many at a time, each part with how often it counts, 1 or 0.

    All processes pass equally many parts through a model, since they synchronise in each block: a process
    that has fewer computes some for nothing.
    """
    shares = distributed.size()
    mine = [(part, 1) for part in distributed.share(rows).split(most) if len(part)]
    yield from mine + [(rows[:1], 0)] * (ceil(ceil(len(rows) / shares) / most) - len(mine))
