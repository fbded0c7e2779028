"""Make a LLaVA with random weights, small enough for any machine: make_tiny_llava.py FOLDER

It exercises the same code as the real one and answers with words from the demo's data, but knows nothing. Runs in lmms-eval's
environment. Needs no network.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

_DATA = Path(__file__).parent / "data"
_IMAGE_SIDE = 28
_PATCH_SIDE = 14
_MAX_TOKENS = 2048
_SPREAD = 0.2
"""Standard deviation of the initial weights: enough for answers that differ between images."""
_END, _UNKNOWN, _IMAGE = "<end>", "<unknown>", "<image>"
_CHAT_TEMPLATE = """
{%- for message in messages %}{{ message['role'] }}:
    {%- if message['content'] is string %} {{ message['content'] }}
    {%- else %}
        {%- for part in message['content'] %} {{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}
    {%- endif %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}"""


def make_tiny_llava(folder: Path) -> None:
    """Write model, tokenizer and image processor to the folder, which appears complete or not at all."""
    torch.manual_seed(2)
    tokenizer = make_tokenizer(read_documents(_DATA))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    make_model(tokenizer).save_pretrained(unfinished)
    make_processor(tokenizer).save_pretrained(unfinished)
    unfinished.rename(folder)


def make_tokenizer(documents: Iterable[Mapping[str, Any]]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each word of the documents' questions and answers."""
    words = {word for each in documents for word in re.findall(r"\w+", f"{each['question']} {each['answer']}")}
    vocabulary = {word: number for number, word in enumerate([_END, _UNKNOWN, _IMAGE, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_END,
        eos_token=_END,
        pad_token=_END,
        unk_token=_UNKNOWN,
        additional_special_tokens=[_IMAGE],
        model_max_length=_MAX_TOKENS,
    )


def read_documents(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of all files in a folder."""
    for file in sorted(folder.glob("*.jsonl")):
        yield from map(json.loads, file.read_text().splitlines())


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Make a model of a few hundred kilobytes."""
    layers = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = tokenizer.eos_token_id
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**layers, image_size=_IMAGE_SIDE, patch_size=_PATCH_SIDE, projection_dim=64),
        text_config=LlamaConfig(
            **layers,
            initializer_range=_SPREAD,
            vocab_size=len(tokenizer),
            max_position_embeddings=_MAX_TOKENS,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = end
    return model


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Make the processor that combines images and text."""
    side = {"height": _IMAGE_SIDE, "width": _IMAGE_SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": _IMAGE_SIDE}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=_PATCH_SIDE,
        vision_feature_select_strategy="default",
        chat_template=_CHAT_TEMPLATE,
        image_token=_IMAGE,
        num_additional_image_tokens=1,
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make_tiny_llava(target)
    print(f"{target}: a tiny LLaVA with random weights")
