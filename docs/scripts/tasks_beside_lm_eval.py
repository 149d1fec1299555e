"""The accuracies of `prunekit eval --tasks` beside those that lm-eval gives when it is called directly.

    python docs/scripts/tasks_beside_lm_eval.py MODEL TASK.yaml ... --limit 200

Exits with 1 where they differ.
"""

import argparse
import json
import subprocess
import sys
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="+", help="task files or names")
    parser.add_argument("--limit", type=int, help="documents of each task (default: all)")
    given = parser.parse_args()
    ours, theirs = by_prunekit(given), by_lm_eval(given)
    print("| task | metric | prunekit | lm-eval |\n|---|---|---|---|")
    for task, metric in sorted(ours.keys() | theirs.keys()):
        print(f"| {task} | {metric} | {ours.get((task, metric))} | {theirs.get((task, metric))} |")
    return int(ours != theirs)


def by_prunekit(given: argparse.Namespace) -> dict[tuple[str, str], float]:
    words = ["eval", given.model, "--ppl", "none", "--tasks", ",".join(given.tasks), "--device", "cpu", "--json", "-q"]
    words += ["--limit", str(given.limit)] if given.limit else []
    done = subprocess.run([sys.executable, "-m", "prunekit", *words], stdout=subprocess.PIPE, check=True)
    return {(row["task"], row["metric"]): row["value"] for row in json.loads(done.stdout)["models"][0]["tasks"]}


def by_lm_eval(given: argparse.Namespace) -> dict[tuple[str, str], float]:
    from lm_eval import simple_evaluate

    how: dict[str, Any] = {"pretrained": given.model, "dtype": "float32"}
    found: Any = simple_evaluate(
        model="hf", model_args=how, tasks=given.tasks, limit=given.limit, device="cpu", batch_size=1, log_samples=False
    )
    return {
        (task, key.partition(",")[0]): value
        for task, metrics in found["results"].items()
        for key, value in metrics.items()
        if "," in key and "_stderr" not in key
    }


if __name__ == "__main__":
    sys.exit(main())
