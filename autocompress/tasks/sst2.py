"""The task "sst2:minilm": a six-layer BERT encoder with a linear head, tuned to tell good from bad film reviews."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.errors import InputError, MissingDataError, MissingExtraError
from autocompress.metrics import accuracy
from autocompress.task import Batch, Inputs, Predict, predict_all
from autocompress.tasks.data import DATA_VARIABLE, data_folder

N_TOKENS = 64  # every sentence of the test split fits
PARTS = {"train": "train", "selection": "dev", "test": "test"}  # split -> the published file it comes from
N_SELECTION = 500  # each costs some 40 ms on one core
SELECTION_SEED, CALIBRATION_SEED = 0, 0
BATCH_SIZE, EVALUATION_BATCH_SIZE, CALIBRATION_BATCH_SIZE = 32, 50, 16
N_CALIBRATION = 128


class SentenceClassifier(nn.Module):
    """The mean of a BERT encoder's token vectors, and a linear head on it.

    Args:
        config: of the encoder, as in Hugging Face's `config.json`.

    Raises:
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        try:
            from transformers import BertConfig, BertModel
        except ImportError as error:
            raise MissingExtraError("MiniLM needs transformers; run: pip install 'autocompress[hf]'") from error
        shape = BertConfig(**config)
        self.bert = BertModel(shape, add_pooling_layer=False)
        self.head = nn.Linear(shape.hidden_size, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (n, 2) of token ids (n, n_tokens); `mask` is 1 where there is a token, 0 where there is padding."""
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1))  # type: ignore[no-any-return]


class Sst2Task:
    """SST-2 with MiniLM-L6; accuracy first, then the mean cross-entropy.

    "test" is the development set of GLUE (872 sentences), the one that papers report on. "selection" are 500
    sentences that were cut from GLUE's training set together with others; some of their phrases occur in training too.
    Every sentence is padded to 64 tokens, so that one file of one shape runs them all.
    """

    name = "sst2:minilm"

    def build_model(self) -> nn.Module:
        """The tuned encoder and head in fp32.

        Raises:
            MissingDataError: the data folder has no such weights.
            MissingExtraError: transformers is not installed.
        """
        config = json.loads(_file("minilm/config.json").read_text(encoding="utf-8"))
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        model = SentenceClassifier({name: config[name] for name in (*sizes, "max_position_embeddings")})
        published = load_file(_file("minilm/model.safetensors"))
        names = model.bert.state_dict().keys()
        weights = {f"bert.{name}": published[name] for name in names}
        tuned = torch.load(_file("minilm/sst2_encoder_head_fp16.pt"), map_location="cpu", weights_only=True)
        for name, value in tuned.items():
            weights[name if name.startswith("head.") else f"bert.{name}"] = value
        model.load_state_dict(weights)  # copies into fp32 parameters, whatever the file's precision
        return model.eval()

    def example_inputs(self) -> Inputs:
        """One sentence's worth of token ids and its mask, (1, 64) each: needs no data."""
        return torch.ones(1, N_TOKENS, dtype=torch.long), torch.ones(1, N_TOKENS, dtype=torch.long)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of shuffled batches of 32, without replacement."""
        ids, mask, labels = load_sentences("train")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        for members in order[: len(order) - len(order) % BATCH_SIZE].split(BATCH_SIZE):
            yield (ids[members], mask[members]), labels[members]

    def calibration_batches(self) -> Iterator[Inputs]:
        """128 fixed training sentences in batches of 16."""
        ids, mask, _ = load_sentences("train")
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(CALIBRATION_SEED))
        members = order[:N_CALIBRATION].split(CALIBRATION_BATCH_SIZE)
        return ((ids[part], mask[part]) for part in members)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, batch[1])

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """Accuracy in [0, 1] and mean cross-entropy on "selection" or "test", in batches of 50.

        Raises:
            InputError: another split.
        """
        if split not in ("selection", "test"):
            raise InputError(f"`split` must be selection or test, but got {split!r}")
        parts = [part.split(EVALUATION_BATCH_SIZE) for part in load_sentences(split)]
        batches = (((ids, mask), labels) for ids, mask, labels in zip(*parts, strict=True))
        outputs, targets = predict_all(predict, batches)
        return {"accuracy": accuracy(outputs, targets), "loss": F.cross_entropy(outputs, targets).item()}


@functools.lru_cache(maxsize=3)
def load_sentences(split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and mask (n, 64) and labels (n,), int64, of "train", "selection" or "test"; kept once per process.

    Raises:
        MissingDataError: the data folder has no SST-2 or no tokenizer.
        MissingExtraError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("SST-2 needs tokenizers; run: pip install 'autocompress[hf]'") from error
    sentences, labels = _rows(_file(f"text/sst2_{PARTS[split]}.tsv.gz"))
    if split == "selection":
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SELECTION_SEED))
        chosen = order[:N_SELECTION].sort().values.tolist()
        sentences, labels = [sentences[i] for i in chosen], [labels[i] for i in chosen]
    tokenizer = Tokenizer.from_file(str(_file("minilm/tokenizer.json")))
    tokenizer.enable_truncation(N_TOKENS)
    tokenizer.enable_padding(length=N_TOKENS)
    encoded = tokenizer.encode_batch(sentences)
    ids = torch.tensor([sentence.ids for sentence in encoded])
    mask = torch.tensor([sentence.attention_mask for sentence in encoded])
    return ids, mask, torch.tensor(labels)


def _rows(path: Path) -> tuple[list[str], list[int]]:
    """Sentences and labels of a file with a heading and lines `sentence TAB label`."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        rows = [line.rstrip("\r\n").split("\t") for line in file][1:]
    return [row[0].strip() for row in rows], [int(row[1]) for row in rows]


def _file(name: str) -> Path:
    path = data_folder() / name
    if not path.is_file():
        raise MissingDataError(
            f"sst2:minilm needs {path}, which is not there; set {DATA_VARIABLE} to the folder that holds minilm/ "
            "(sentence-transformers/all-MiniLM-L6-v2 and its tuned encoder and head) and text/ (SST-2)"
        )
    return path
