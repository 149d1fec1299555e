"""Task files of lm-eval for the multiple-choice documents in the folder of real data."""

import json
from pathlib import Path
from typing import Any

METRICS = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
ASKED: dict[str, dict[str, Any]] = {
    "piqa": {"doc_to_text": "{{query}}Answer:", "doc_to_choice": "choices"},
    "arc_easy": {"doc_to_text": "{{query}}\nAnswer:", "doc_to_choice": "choices"},
    "hellaswag_val_1000_olmes": {"doc_to_text": "query", "doc_to_choice": "choices"},
    "winogrande": {
        "doc_to_text": "Which fits? {{continuation}}",
        "doc_to_choice": "{{[context_options[0] + ' ' + continuation, context_options[1] + ' ' + continuation]}}",
    },
}


def write_tasks(folder: Path, documents: Path, cache: Path) -> list[str]:
    """Write a task file for each set of documents; returns their paths."""
    paths = []
    for name, asked in ASKED.items():
        data = {"data_files": {"test": str(documents / f"{name}.jsonl")}, "cache_dir": str(cache)}
        config = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": data,
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_target": "gold",
            "metric_list": METRICS,
            "metadata": {"version": 1},
            **asked,
        }
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(config))
        paths.append(str(path))
    return paths
