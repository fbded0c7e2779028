"""A harness of the campaign: served_harness.py OUTPUT_DIR JOB_ID MANNER COUNT. It asks several questions at once, the last one
twice.

A careful one asks again where it gets no answer. A careless one scores that as 0, and goes on: lmms-eval does so in the end.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

IN_FLIGHT = 4
_TRIES = {"careful": 20, "careless": 1}
_PAUSE_SECONDS = 0.1


def ask(text: str, tries: int) -> str:
    """Return the answer; empty if there is none."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    address = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    for _ in range(tries):
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except (OSError, http.client.HTTPException, urllib.error.URLError):
            time.sleep(_PAUSE_SECONDS)
    return ""


def main() -> None:
    output, job_id, tries, count = Path(sys.argv[1]), sys.argv[2], _TRIES[sys.argv[3]], int(sys.argv[4])
    questions = [f"question {job_id} {min(number, count - 2)}" for number in range(count)]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        answers = list(pool.map(lambda text: ask(text, tries), questions))
    rows = [{"doc_id": number, "acc": float(bool(answer)), "resps": answer} for number, answer in enumerate(answers)]
    folder = output / "m"
    folder.mkdir(parents=True)
    (folder / "20260214_103045_samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mean = sum(bool(answer) for answer in answers) / count
    (folder / "20260214_103045_results.json").write_text(json.dumps({"results": {"t": {"acc,none": mean}}}))


if __name__ == "__main__":
    main()
