"""Small models and tokenizers as `save_pretrained` writes them, and tables of texts to go with them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = ("good", "bad", "film", "plot", "very", "not", "actor", "story", "end", "music")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    words = Tokenizer(WordLevel(vocabulary, unk_token=marks["unk_token"]))
    words.pre_tokenizer = Whitespace()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=32, model_input_names=names, **marks
    ).save_pretrained(folder)


def write_classifier(folder: Path, labels: tuple[str, ...] = ("negative", "positive")) -> Path:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = BertConfig(vocab_size=12, max_position_embeddings=32, num_labels=len(labels), **names, **SIZES)
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_texts(file: Path, n_rows: int = 80, labels: tuple[str, ...] = ("negative", "positive")) -> Path:
    order = torch.randint(0, len(WORDS), (n_rows, 6), generator=torch.Generator().manual_seed(1)).tolist()
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sentence", "label"])
        for row in order:
            writer.writerow([" ".join(WORDS[i] for i in row), labels[row[0] % len(labels)]])
    return file
