"""Decoders by id as tasks: plain text in blocks of tokens, judged by perplexity."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.task import Batch, Inputs, Predict
from autocompress.tasks.dataset import SELECTION_SHARE, TEST_SHARE
from autocompress.tasks.huggingface import DecoderModel
from autocompress.tasks.identifiers import TaskId
from autocompress.tasks.samples import read_texts

_BATCH_SIZE, _N_CALIBRATION = 8, 8


@dataclass(frozen=True)
class Corpus:
    """Token blocks by split, int64, each (n_blocks, n_tokens); what a reader should know.

    Attributes:
        blocks: "train", "selection" and "test": the beginning, the next and the last part of the text.
        note: a line for a reader.
    """

    blocks: dict[str, Tensor]
    note: str


class LanguageTask:
    """A decoder by id with plain text: each split is a part of the text of its own, in blocks of `max_length` tokens.

    The targets are the text's own next tokens, so that there are no labels, and `data` and `inputs` are the same.
    """

    objectives = {"perplexity": "minimize", "loss": "minimize"}  # noqa: RUF012

    def __init__(self, task_id: TaskId) -> None:
        self._id = task_id
        self.name = f"{task_id.source}:{task_id.name}"

    @property
    def spec(self) -> str:
        """The text that makes this task again."""
        return self._id.text()

    @property
    def has_data(self) -> bool:
        """Whether there is text; without it the model can only be inspected."""
        return self._id.data is not None or self._id.inputs is not None

    @property
    def teacher_loss(self) -> str:
        """The distillation loss."""
        return self._id.teacher_loss or "kl"

    def notes(self) -> list[str]:
        """Lines that say which data was found and which options were chosen."""
        lines = [f"{self.name}: causal-lm by {open_decoder(self._id).title}"]
        if not self.has_data:
            return lines
        goal = f"minimize perplexity; students learn from the uncompressed model's outputs by: {self.teacher_loss}"
        return [*lines, read_corpus(self._id).note, goal]

    def build_model(self) -> nn.Module:
        """The decoder; it returns logits (n, n_tokens, n_vocabulary)."""
        return open_decoder(self._id).build()

    def example_inputs(self) -> Inputs:
        """One block, as when a prompt is read: needs no data."""
        return open_decoder(self._id).example_inputs()

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of shuffled batches of 8 blocks."""
        blocks = read_corpus(self._id).blocks["train"]
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
        for places in order.split(_BATCH_SIZE):
            if len(places) == _BATCH_SIZE or len(blocks) < _BATCH_SIZE:
                yield {"input_ids": blocks[places]}, blocks[places]

    def calibration_batches(self) -> Iterator[Inputs]:
        """The first 64 training blocks in batches of 8."""
        parts = read_corpus(self._id).blocks["train"][: _BATCH_SIZE * _N_CALIBRATION].split(_BATCH_SIZE)
        return ({"input_ids": part} for part in parts)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the next tokens, nats."""
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), batch[1][:, 1:].flatten())

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """Perplexity of the next tokens within blocks, and the mean negative log-likelihood, over a whole split.

        Raises:
            InputError: the split is neither "selection" nor "test".
        """
        if split not in ("selection", "test"):
            raise InputError(f"`split` must be selection or test, but got {split!r}")
        blocks = read_corpus(self._id).blocks[split]
        total = 0.0
        with torch.no_grad():
            for part in blocks.split(_BATCH_SIZE):  # logits of a whole split would not fit into memory
                outputs = predict({"input_ids": part}).float()
                total += self.loss(outputs, ({"input_ids": part}, part)).item() * len(part)
        mean = total / len(blocks)
        return {"perplexity": math.exp(min(mean, 700.0)), "loss": mean}


@functools.lru_cache(maxsize=4)
def open_decoder(task_id: TaskId) -> DecoderModel:
    """The decoder's source, opened once a process."""
    return DecoderModel.open(task_id)


@functools.lru_cache(maxsize=4)
def read_corpus(task_id: TaskId) -> Corpus:
    """Reads, tokenizes and cuts the text, once a process.

    Raises:
        InputError: no text is named, or it is too short.
    """
    name = task_id.data or task_id.inputs
    if name is None:
        raise InputError(f"{task_id.source}:{task_id.name} needs text: --data FILE_OR_FOLDER")
    decoder = open_decoder(task_id)
    texts = [str(content) for content in read_texts(name, task_id.text_column, None, labelled=False).contents]
    blocks = decoder.blocks(texts)
    n_test, n_selection = (int(share * len(blocks)) for share in (TEST_SHARE, SELECTION_SHARE))
    if min(n_test, n_selection) < 1:
        raise InputError(
            f"the text must give at least 7 blocks of {decoder.n_tokens} tokens, but {name} gives {len(blocks)}; "
            "give more text, or a smaller --max-length"
        )
    n_train = len(blocks) - n_test - n_selection
    parts = {
        "train": blocks[:n_train][: task_id.n_train],
        "selection": blocks[n_train : n_train + n_selection][: task_id.n_selection],
        "test": blocks[n_train + n_selection :][: task_id.n_test],
    }
    sizes = ", ".join(f"{len(part)} {split}" for split, part in parts.items())
    return Corpus(parts, f"{name}: {sizes} blocks of {decoder.n_tokens} tokens (--max-length changes it)")
