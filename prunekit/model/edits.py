"""The finished blocks of a run on disk, which take the place of the source's when they are read."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import Tensor

from prunekit.files import storage_errors, sync, write_atomically
from prunekit.model.checkpoint import Copy, TensorInfo, read_header, read_metadata, read_safetensors

DONE = "done.json"
Piece = int | Literal["outside"]  # a block by its index in the source, or all that is in no block


@dataclass(frozen=True)
class Edits:
    """A store of edited blocks.

    FOLDER/
        blocks/00003.safetensors     one finished block: written, synced and renamed before the next begins
        blocks/outside.safetensors   embeddings, norm and head, if they were edited
        probe.safetensors            a short sequence and the edited model's logits for it
        done.json                    the notes of the stage, once all of it is done

    With `below`, the store of an earlier stage, what this one does not hold is read from there.
    """

    folder: Path
    below: "Edits | None" = None

    def block_path(self, part: Piece) -> Path:
        """The file of one finished block, or of what is outside the blocks."""
        name = f"{part:05d}" if isinstance(part, int) else part
        return self.folder / "blocks" / f"{name}.safetensors"

    def has_block(self, part: Piece) -> bool:
        """Whether that part was finished in this stage, by this run or by the one it resumes."""
        return self.block_path(part).is_file()

    def holds(self, part: Piece) -> bool:
        """Whether that part was edited in this stage or in an earlier one."""
        return self.has_block(part) or (self.below is not None and self.below.holds(part))

    def finished_blocks(self) -> int:
        """How many blocks are finished in this stage."""
        return sum(1 for _ in (self.folder / "blocks").glob("[0-9]*.safetensors"))

    def write_block(self, part: Piece, tensors: Mapping[str, Tensor], notes: Sequence[str] = ()) -> None:
        """Commit one block and what there was to remark: write, sync, rename.

        Raises ResourceError when the disk is full.
        """
        path = self.block_path(part)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            ordered = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
            save_file(ordered, partial, {"notes": json.dumps(list(notes))})
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)

    def notes(self, part: Piece) -> list[str]:
        """What was remarked when a finished block was pruned."""
        return json.loads(read_metadata(self.block_path(part))["notes"])

    def block_infos(self, part: Piece) -> dict[str, TensorInfo]:
        """What is stored of a finished part, by name."""
        return read_header(self._newest(part))

    def read_block(self, part: Piece, names: list[str], copy: Copy = Tensor.clone) -> dict[str, Tensor]:
        """The named tensors of a finished part in their stored dtype, or what `copy` makes of them."""
        return read_safetensors({self._newest(part): names}, copy)

    @property
    def work(self) -> Path:
        """Where long work of the stage keeps its state."""
        return self.folder / "work"

    @property
    def done(self) -> list[str] | None:
        """The notes of the stage once it is done, until then None."""
        path = self.folder / DONE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, notes: Sequence[str]) -> None:
        """Remember that all of the stage is done, and what there was to remark."""
        with storage_errors(self.folder):
            write_atomically(self.folder / DONE, json.dumps(list(notes)) + "\n")

    def _newest(self, part: Piece) -> Path:
        """The file of a part from the last stage that edited it."""
        if self.below is None or self.has_block(part):
            return self.block_path(part)
        return self.below._newest(part)

    @property
    def probe_path(self) -> Path:
        """Token ids and the pruned model's logits for them, against which the export is verified."""
        return self.folder / "probe.safetensors"

    def write_probe(self, ids: Tensor, logits: Tensor) -> None:
        """Keep `input_ids` (1, tokens) and `logits` (tokens, vocabulary) in float32."""
        with storage_errors(self.probe_path):
            save_file(
                {"input_ids": ids.cpu().contiguous(), "logits": logits.float().cpu().contiguous()},
                self.probe_path,
            )
