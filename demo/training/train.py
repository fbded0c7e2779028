"""A training run that any machine can do: train.py FOLDER. Runs in lmms-eval's environment, and needs no network.

It trains the tiny LLaVA on the questions of the demo, of images and of text, until it knows the answers, and saves `baseline`
on the way and `checkpoint-400` at the end. Then it goes on with a learning rate that is far too high, and saves
`checkpoint-430`.
Each of them has the language model alone in `language/`, for harnesses without images.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).parent
DEMO = HERE.parent
sys.path[:0] = [str(DEMO), str(DEMO / "tasks")]

from make_tiny_llava import make_model, make_processor, make_tokenizer, read_documents  # noqa: E402
from utils import doc_to_text, doc_to_visual  # noqa: E402

BASELINE_STEP, GOOD_STEP, LAST_STEP = 100, 400, 430
LEARNING_RATE, TOO_HIGH_RATE = 4e-3, 0.3
BATCH = 16
MARKER = "DONE"
IGNORED = -100
"""What the loss leaves out."""

Batch = Mapping[str, torch.Tensor]
Document = dict[str, Any]


def main(folder: Path) -> None:
    """Train, and save the checkpoints into a folder."""
    torch.manual_seed(2)
    torch.set_num_threads(1)
    disable_progress_bar()
    of_images, of_text = list(read_documents(DEMO / "data")), list(read_documents(HERE / "data"))
    tokenizer = make_tokenizer([*of_images, *of_text])
    model, processor = make_model(tokenizer), make_processor(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    for step in range(1, LAST_STEP + 1):
        loss = model(**about_images(processor, some(of_images))).loss + model(**about_text(processor, some(of_text))).loss
        if step <= GOOD_STEP:
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - (step - 1) / GOOD_STEP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
        if step == BASELINE_STEP:
            save(model, processor, folder / "baseline")
        if step == GOOD_STEP:
            save(model, processor, folder / f"checkpoint-{step}")
            optimizer = torch.optim.AdamW(model.parameters(), TOO_HIGH_RATE)
    save(model, processor, folder / f"checkpoint-{LAST_STEP}")


def some(documents: Sequence[Document]) -> list[Document]:
    """Return the documents of a batch."""
    return [documents[place] for place in torch.randperm(len(documents))[:BATCH]]


def about_images(processor: LlavaProcessor, documents: Sequence[Document]) -> Batch:
    """Return questions about images with their answers, as lmms-eval asks them."""
    messages = [[{"role": "user", "content": f"<image>\n{doc_to_text(document)}"}] for document in documents]
    prompts = [processor.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in messages]
    images = [doc_to_visual(document)[0] for document in documents]
    texts = [f"{prompt} {document['answer']} <end>" for prompt, document in zip(prompts, documents, strict=True)]
    return with_labels(processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt"))


def about_text(processor: LlavaProcessor, documents: Sequence[Document]) -> Batch:
    """Return questions with their answers, as lm-eval asks them."""
    texts = [f"{document['question']} {document['answer']} <end>" for document in documents]
    return with_labels(processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt"))


def with_labels(batch: Batch) -> Batch:
    """Have only the answers learned: the last word of each text, and its end."""
    ends = batch["attention_mask"].sum(dim=1)
    places = torch.arange(batch["input_ids"].shape[1])[None, :]
    is_answer = (places >= ends[:, None] - 2) & (places < ends[:, None])
    return {**batch, "labels": batch["input_ids"].masked_fill(~is_answer, IGNORED)}


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write the model, its language model alone, and then the marker that says so."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    language = LlamaForCausalLM(model.config.text_config)
    language.model.load_state_dict(model.model.language_model.state_dict())
    language.lm_head.load_state_dict(model.lm_head.state_dict())
    language.save_pretrained(folder / "language")
    processor.tokenizer.save_pretrained(folder / "language")
    (folder / MARKER).touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
