"""Answers chats with the checkpoints of a folder, by name, as OpenAI's API does: chat_server.py FOLDER. Prints its port.

A stand-in for an inference server, such as vLLM, that is small enough for the demo. Runs in lmms-eval's environment.
"""

import json
import sys
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

MAX_NEW_TOKENS = 4


class ChatServer(HTTPServer):
    """One answer at a time: the model is tiny."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.load = cache(lambda name: load(folder / Path(name).name / "language"))


class Handler(BaseHTTPRequestHandler):
    """Takes POST, on any path."""

    server: ChatServer

    def do_POST(self) -> None:
        """Answer the last message of a chat."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(completion(request, *self.server.load(request["model"]))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer."""
    return LlamaForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def completion(request: dict[str, Any], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the answer to a request."""
    inputs = tokenizer(request["messages"][-1]["content"], return_tensors="pt")
    count = inputs["input_ids"].shape[1]
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0, count:]
    message = {"role": "assistant", "content": tokenizer.decode(tokens, skip_special_tokens=True)}
    usage = {"prompt_tokens": count, "completion_tokens": len(tokens), "total_tokens": count + len(tokens)}
    return {
        "id": "demo",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": usage,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bar()
    with ChatServer(Path(sys.argv[1])) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
