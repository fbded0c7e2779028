"""What the demo's tasks ask, show and score. Runs inside lmms-eval."""

from typing import Any

from PIL import Image, ImageDraw

_SIZE = 112
_CELL = 36


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """Draw as many squares as the document says, in its colour."""
    image = Image.new("RGB", (_SIZE, _SIZE), "grey")
    draw = ImageDraw.Draw(image)
    for index in range(doc["count"]):
        left, top = 4 + index % 3 * _CELL, 4 + index // 3 * _CELL
        draw.rectangle((left, top, left + _CELL - 8, top + _CELL - 8), fill=doc["colour"])
    return [image]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """Ask the document's question."""
    del lmms_eval_specific_kwargs
    return f"{doc['question']} Answer with one word."


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one answer: is the right word in it, and is it nothing but that word?"""
    words = results[0].lower().split()
    return {"mentioned": float(doc["answer"] in words), "exact": float(words == [doc["answer"]])}
