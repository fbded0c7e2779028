"""A harness of a test that asks a served model: asking_program.py OUTPUT_DIR COUNT. It leaves its answers as samples."""

import json
import os
import sys
import urllib.request
from pathlib import Path


def ask(text: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def main() -> None:
    output, count = Path(sys.argv[1]), int(sys.argv[2])
    answers = []
    for number in range(count):
        answers.append(ask(f"question {number}"))
        print(f"{number + 1}/{count}", flush=True)
    folder = output / "m"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"doc_id": n, "acc": float(a == f"answer to question {n}"), "resps": a} for n, a in enumerate(answers)]
    (folder / "20260214_103045_samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mean = sum(row["acc"] for row in rows) / len(rows)
    (folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": mean}}}))


if __name__ == "__main__":
    main()
