"""The small model file beside weights whose blocks are not equally wide, and how such a file is known again.

transformers can say in config.json that blocks differ (`per_layer_config`), and no model class of it builds them so.
The file does, and needs no prunekit. It is one template with a few names filled in; a file that is that template to the
letter, with nothing but names in it, may run without the user having to trust it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from transformers import PreTrainedModel

from prunekit.model.structure import FFN

MODULE = "modeling_prunekit"
FILE = f"{MODULE}.py"
TEMPLATE = '''"""$causal with feed-forward layers of different widths, as `per_layer_config` in config.json says.

Written by prunekit, and needs transformers alone:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
"""

from torch import nn
from transformers.pytorch_utils import Conv1D
from $module import $base, $causal

KEY, UNIT = "$key", $unit
BLOCKS, READER = "$blocks", "$reader"
WRITERS = $writers  # linear -> how many of its outputs make a neuron

try:  # weights that transformers converts while loading are converted for these classes, too
    from transformers import conversion_mapping

    kind = $causal.config_class.model_type
    for known, ours in ((kind, kind), ("$causal", "PerLayer$causal"), ("$base", "PerLayer$base")):
        if mapping := conversion_mapping.get_checkpoint_conversion_mapping(known):
            conversion_mapping.register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)
except ImportError:  # an older transformers converts nothing
    pass


def shorten(part, name, dim, size):
    """Leave the first entries of a parameter of a linear."""
    setattr(part, name, nn.Parameter(getattr(part, name).detach().narrow(dim, 0, size).clone()))


def narrow(block, neurons):
    """Make the feed-forward layer of a block as wide as it is in the files."""
    for path, each in [*WRITERS.items(), (READER, None)]:
        part, outputs = block.get_submodule(path), each is not None
        shorten(part, "weight", int(outputs == isinstance(part, Conv1D)), neurons * (each or 1))
        if outputs and part.bias is not None:
            shorten(part, "bias", 0, neurons * each)
        if isinstance(part, Conv1D):
            part.nx, part.nf = part.weight.shape
        else:
            part.out_features, part.in_features = part.weight.shape


class PerLayer:
    """Builds all blocks alike and then narrows those that `per_layer_config` names."""

    def __init__(self, config, *args, **kwargs):
        widths = config.to_dict().get("per_layer_config") or {}
        config.per_layer_config = None
        super().__init__(config, *args, **kwargs)
        config.per_layer_config = widths or None
        blocks = getattr(self, self.base_model_prefix, self).get_submodule(BLOCKS)
        for index, changed in widths.items():
            narrow(blocks[int(index)], round(changed[KEY] * UNIT))


class PerLayer$base(PerLayer, $base):
    pass


class PerLayer$causal(PerLayer, $causal):
    pass
'''
FIELDS = {
    "module": r"transformers\.models\.\w+\.modeling_\w+",
    "base": r"[A-Z]\w*",
    "causal": r"[A-Z]\w*",
    "key": r"\w+",
    "unit": r"\d+",
    "blocks": r"[\w.]+",
    "reader": r"[\w.]+",
    "writers": r'\{("[\w.]+": \d+(, )?)+\}',
}


def render(model: PreTrainedModel, stack_path: str, key: str, unit: int, ffn: FFN) -> str:
    """The model file for a class of transformers' own whose decoder blocks are at `stack_path`."""
    shown = ", ".join(f'"{name}": {sum(segments)}' for name, segments in ffn.writers.items())
    return Template(TEMPLATE).substitute(
        module=type(model).__module__,
        base=type(model.base_model).__name__,
        causal=type(model).__name__,
        key=key,
        unit=unit,
        blocks=stack_path.removeprefix(f"{model.base_model_prefix}."),
        reader=ffn.reader,
        writers=f"{{{shown}}}",
    )


def auto_map(model: PreTrainedModel) -> dict[str, str]:
    """The entry of config.json that leads to the classes of the file."""
    return {
        "AutoModel": f"{MODULE}.PerLayer{type(model.base_model).__name__}",
        "AutoModelForCausalLM": f"{MODULE}.PerLayer{type(model).__name__}",
    }


def is_ours(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether all the code that a model folder brings is a file that `render` wrote, unchanged.

    Trusting a folder would also let its own `generate` run, which no config names: there may be none.
    """
    classes, found = config.get("auto_map"), read(folder)
    if not isinstance(classes, dict) or found is None or (folder / "custom_generate").exists():
        return False
    ours = {f"{MODULE}.PerLayer{found[name]}" for name in ("base", "causal")}
    return classes.keys() <= {"AutoModel", "AutoModelForCausalLM"} and set(classes.values()) <= ours


def read(folder: Path) -> dict[str, str] | None:
    """The names with which the model file of a folder was rendered; None when it is not a file of ours."""
    path = folder / FILE
    found = _pattern().fullmatch(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return found and found.groupdict()


def _pattern() -> re.Pattern[str]:
    """What a rendered file looks like: the template with any names in it, the same one wherever a field recurs."""
    seen: set[str] = set()

    def field(match: re.Match[str]) -> str:
        name = match[1]
        again, _ = name in seen, seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>{FIELDS[name]})"

    return re.compile(re.sub(r"\\\$([a-z]+)", field, re.escape(TEMPLATE)))
