"""A harness of the kind `command`: the checkpoint of a model that learns to add, evaluated on sums.

It reads the request, prints a progress bar, and writes the results and a row per sample in lmms-eval's layout. The checkpoint
is `model_args.step`; the more steps, the more sums are right.
"""

import json
import math
import random
import sys
import time
from pathlib import Path

DOCUMENTS = 120


def main(request_json: str, output_dir: str) -> None:
    """Evaluate every task of the request."""
    request = json.loads(Path(request_json).read_text())
    step = request.get("model_args", {}).get("step", 0)
    folder = Path(output_dir, request["model"])
    folder.mkdir(parents=True)
    results, sizes = {}, {}
    for task in request["tasks"]:
        rows = [evaluate(task, number, step) for number in range(DOCUMENTS)]
        accuracy = sum(row["acc"] for row in rows) / len(rows)
        error = math.sqrt(accuracy * (1 - accuracy) / (len(rows) - 1))
        results[task] = {"alias": task, "acc,none": accuracy, "acc_stderr,none": error}
        sizes[task] = {"original": len(rows), "effective": len(rows)}
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"20260214_103045_samples_{task}.jsonl").write_text(lines)
    higher = {task: {"acc": True} for task in results}
    report = {"results": results, "higher_is_better": higher, "n-samples": sizes}
    (folder / "20260214_103045_results.json").write_text(json.dumps(report))


def evaluate(task: str, number: int, step: float) -> dict[str, object]:
    """Answer one sum, and show how far it is."""
    source = random.Random(f"{task} {number}")
    first, second, difficulty = source.randrange(100), source.randrange(100), source.random()
    answer = first + second + (0 if difficulty < 1 - math.exp(-step / 800) else source.randrange(1, 9))
    time.sleep(0.005)
    sys.stderr.write(f"\rEvaluating: {number + 1}/{DOCUMENTS} [00:01<00:00, 200.00it/s]")
    sys.stderr.flush()
    question, target = f"{first} + {second} =", first + second
    return {"doc_id": number, "question": question, "target": target, "resps": [[answer]], "acc": float(answer == target)}


if __name__ == "__main__":
    main(*sys.argv[1:])
