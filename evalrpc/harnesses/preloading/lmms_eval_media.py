# mypy: ignore-errors
"""Prints what documents of a task show: the images, sounds and videos that lmms-eval leaves out of its samples.

The harness's own interpreter runs it, with one argument, an object in JSON: `task`, `model`, `include_path`, `doc_ids`, `main`
(the file that knows how to read the index of tasks fast), and the limits `max_bytes` of a medium, `max_total_bytes`,
`memory_bytes` and `processor_seconds`. The last line of its output is `{"documents": {ID: [MEDIUM, ...]}, "has_media": bool}`,
with a medium as `{"data": BASE64}`, `{"path": TEXT}` or `{"problem": TEXT}`. Documents after the first that no longer fit are
left out.
"""

import base64
import io
import json
import os
import resource
import runpy
import sys
import wave

_SIDES = (4096, 2048, 1024, 512)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


def main(order: dict) -> dict:
    """Return what to print."""
    resource.setrlimit(resource.RLIMIT_CPU, (_used_seconds() + order["processor_seconds"],) * 2)
    resource.setrlimit(resource.RLIMIT_DATA, (order["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    _stay_offline()
    runpy.run_path(order["main"])["use_libyaml"]()
    task = _load(order["task"], order["model"], order["include_path"])
    show = _shower(task)
    if show is None:
        return {"documents": {}, "has_media": False}
    docs = task.eval_docs
    documents, room = {}, order["max_total_bytes"]
    for doc_id in order["doc_ids"]:
        if doc_id >= len(docs) and documents:
            break
        if doc_id >= len(docs):
            documents[doc_id] = [{"problem": f"the task has {len(docs)} documents by now"}]
            break
        media = [_described(each, order["max_bytes"]) for each in _flat(show(docs[doc_id]))]
        room -= sum(len(each.get("data", "")) for each in media)
        if room < 0 and documents:
            break
        documents[doc_id] = media
    return {"documents": documents, "has_media": True}


def _used_seconds() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime + used.ru_stime) + 1


def _stay_offline() -> None:
    """What a run has fetched is on the disk. Libraries that are loaded already have looked at the variables."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets
    import huggingface_hub

    datasets.config.HF_DATASETS_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True


def _load(name: str, model: str, folders: list):
    from lmms_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager("ERROR", include_path=folders or None, model_name=model)
    pending = [get_task_dict([name], manager)]
    while pending:
        for key, value in pending.pop().items():
            value = value[1] if isinstance(value, tuple) else value
            if isinstance(value, dict):
                pending.append(value)
            elif str(getattr(key, "task_name", key)) == name or value.config.task == name:
                return value
    raise LookupError(f"lmms-eval has no task {name}")


def _shower(task):
    """Return the function that gives what a document shows; None for a task without."""
    if task.config.doc_to_visual is not None:
        return task.doc_to_visual
    if callable(getattr(task.config, "doc_to_messages", None)):
        return lambda doc: _parts(task.doc_to_messages(doc))
    return None


def _parts(messages):
    kinds = ("image", "audio", "video")
    for message in messages:
        for part in message.get("content", ()) if isinstance(message.get("content"), list) else ():
            if part.get("type") in kinds:
                yield part.get("url", part.get(part["type"]))


def _flat(visuals):
    if isinstance(visuals, (list, tuple)) or hasattr(visuals, "__next__"):
        for each in visuals:
            yield from _flat(each)
    elif visuals is not None:
        yield visuals


def _described(visual, max_bytes: int) -> dict:
    try:
        if isinstance(visual, str):
            return {"path": visual}
        data = _bytes_of(visual, max_bytes)
    except Exception as error:  # noqa: BLE001 - of one medium, in code of others
        return {"problem": f"{type(error).__name__}: {error}"[:300]}
    if data is None:
        return {"problem": f"the task has it as {type(visual).__name__}, which can't be shown"}
    if len(data) > max_bytes:
        return {"problem": f"it is too large: more than {max_bytes} bytes"}
    return {"data": base64.b64encode(data).decode()}


def _bytes_of(visual, max_bytes: int):
    if isinstance(visual, (bytes, bytearray)):
        return bytes(visual)
    if hasattr(visual, "save") and hasattr(visual, "thumbnail"):
        return _image(visual, max_bytes)
    if isinstance(visual, dict) and visual.get("bytes"):
        return bytes(visual["bytes"])
    if isinstance(visual, dict) and "array" in visual:
        return _sound(visual["array"], visual.get("sampling_rate", 16000))
    return None


def _image(image, max_bytes: int) -> bytes:
    """Return an image as PNG or, where that is too large, smaller and as JPEG."""
    data = _encoded(image if image.mode in _PNG_MODES else image.convert("RGB"), "PNG")
    for side in _SIDES:
        if len(data) <= max_bytes:
            break
        smaller = image.convert("RGB")
        smaller.thumbnail((side, side))
        data = _encoded(smaller, "JPEG", quality=90)
    return data


def _encoded(image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _sound(samples, rate: int) -> bytes:
    values = (samples.clip(-1, 1) * 32767).astype("<i2")  # a NumPy array
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if values.ndim == 1 else values.shape[-1])
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(values.tobytes())
    return buffer.getvalue()


if __name__ == "__main__":
    answer = main(json.loads(sys.argv[1]))
    print("\n" + json.dumps(answer), flush=True)
