"""A harness of a test that asks a served model: asking_program.py OUTPUT_DIR COUNT. It leaves its answers as samples.

COUNT may be followed by fields of the questions, such as `3:temperature=0`. With JUDGE_URL, each answer is one that the judge
calls right; without a served model, the answers are its own.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path


def ask(url: str, text: str, **fields: object) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def answer_to(number: int, **fields: object) -> str:
    url = os.environ.get("OPENAI_BASE_URL")
    return ask(url, f"question {number}", **fields) if url else f"answer to question {number}"


def is_right(number: int, answer: str) -> bool:
    judge = os.environ.get("JUDGE_URL")
    is_as_expected = answer == f"answer to question {number}"
    return is_as_expected and ask(judge, f"question: is it {answer}?").startswith("answer") if judge else is_as_expected


def main() -> None:
    output, (count_text, *given) = Path(sys.argv[1]), sys.argv[2].split(":")
    count, fields = int(count_text), {name: json.loads(value) for name, value in (field.split("=") for field in given)}
    answers = []
    for number in range(count):
        answers.append(answer_to(number, **fields))
        print(f"{number + 1}/{count}", flush=True)
    folder = output / "m"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"doc_id": n, "acc": float(is_right(n, a)), "resps": a} for n, a in enumerate(answers)]
    (folder / "20260214_103045_samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mean = sum(row["acc"] for row in rows) / len(rows)
    (folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": mean}}}))


if __name__ == "__main__":
    main()
