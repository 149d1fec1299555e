"""Write docs/schemas/*.json, what `--json` prints, from the models that the commands print.

python docs/scripts/schemas.py docs/schemas
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from prunekit.compare.table import Runs
from prunekit.evaluate.rows import BeforeAndAfter, Evaluation
from prunekit.export.push import Upload
from prunekit.export.verify import Verification
from prunekit.run.outcome import Outcome
from prunekit.run.relayout import Relaid
from prunekit.run.repeat import Repeat
from prunekit.run.sweep import Sweep

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODELS: dict[str, type[BaseModel]] = {
    "eval": Evaluation,
    "prune": Outcome,
    "compare": Runs,
    "sweep": Sweep,
    "push": Upload,
    "export": Relaid,
}
INNER: dict[str, dict[str, type[BaseModel]]] = {  # what a model holds as plain JSON, or null
    "prune": {"perplexity": BeforeAndAfter, "verification": Verification, "repeat": Repeat},
    "export": {"verification": Verification},
}


class Printed(GenerateJsonSchema):
    """The schema of what is printed: every field is there."""

    def field_is_required(self, *_: Any, **__: Any) -> bool:
        return True


def schemas() -> dict[str, str]:
    """File name -> its content."""
    return {f"{name}.schema.json": json.dumps(schema(model, name), indent=2) + "\n" for name, model in MODELS.items()}


def schema(model: type[BaseModel], name: str) -> dict[str, Any]:
    """The schema of what one command prints."""
    made = _made(model)
    for field, inner in INNER.get(name, {}).items():
        part = _made(inner)
        made.setdefault("$defs", {}).update(part.pop("$defs", {}), **{inner.__name__: part})
        described = {key: value for key, value in made["properties"][field].items() if key == "description"}
        made["properties"][field] = {"anyOf": [{"$ref": f"#/$defs/{inner.__name__}"}, {"type": "null"}], **described}
    return {"$schema": DIALECT, **made, "title": f"prunekit {name} --json"}


def _made(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(mode="serialization", schema_generator=Printed)


if __name__ == "__main__":
    for name, text in schemas().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")
