"""The task "voice_lstm": a three-layer LSTM that classifies spoken digits."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError, MissingDataError
from autocompress.metrics import accuracy
from autocompress.task import Batch, Inputs, Predict, predict_all
from autocompress.tasks.data import DATA_VARIABLE, data_folder

N_BANDS, N_FRAMES = 40, 96  # 99 % of the recordings fit
N_HIDDEN, N_DIGITS = 256, 10
N_TEST_TAKES = 5  # the official test split: the first five recordings of each digit by each speaker
BATCH_SIZE, EVALUATION_BATCH_SIZE = 32, 50
N_CALIBRATION, CALIBRATION_BATCH_SIZE, CALIBRATION_SEED = 256, 32, 0
SPLITS = ("selection", "test", "test300")

Recordings = tuple[Tensor, Tensor, Tensor]


class SpokenDigitNet(nn.Module):
    """Three LSTM layers over mel frames and a linear layer on the output at each recording's last frame.

    The layers are modules of their own, so that each can have its own width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm0 = nn.LSTM(N_BANDS, N_HIDDEN, batch_first=True)
        self.lstm1 = nn.LSTM(N_HIDDEN, N_HIDDEN, batch_first=True)
        self.lstm2 = nn.LSTM(N_HIDDEN, N_HIDDEN, batch_first=True)
        self.linear = nn.Linear(N_HIDDEN, N_DIGITS)

    def forward(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        """Logits (n, 10) of mel power (n, n_frames, 40), zero after the `n_frames` (n,) of each recording."""
        hidden, _ = self.lstm0(frames)
        hidden, _ = self.lstm1(hidden)
        hidden, _ = self.lstm2(hidden)
        is_last = torch.arange(hidden.shape[1], device=frames.device) == n_frames[:, None] - 1
        return self.linear((hidden * is_last[:, :, None].to(hidden.dtype)).sum(1))  # type: ignore[no-any-return]


class VoiceLstmTask:
    """The Free Spoken Digit Dataset with a published-size LSTM; accuracy first, then the mean cross-entropy.

    The network was trained on all but the 300 official test recordings, so these are cut in two by digit, speaker and
    take: 150 for "selection", 150 for "test"; "test300" is both. Recordings are padded or cut to 96 frames. The
    accuracy is nearly saturated: look at the loss too.
    """

    name = "voice_lstm"

    def build_model(self) -> nn.Module:
        """The network with its trained weights in fp32.

        Raises:
            MissingDataError: the data folder has no such weights.
        """
        model = SpokenDigitNet()
        weights = torch.load(_file("fsdd_digit_lstm_fp16.pt"), map_location="cpu", weights_only=True)
        by_layer = {re.sub(r"^lstm\.(.*)_l(\d)$", r"lstm\2.\1_l0", name): value for name, value in weights.items()}
        model.load_state_dict(by_layer)  # copies into fp32 parameters
        return model.eval()

    def example_inputs(self) -> Inputs:
        """One recording's worth of silence, (1, 96, 40), and its length: needs no data."""
        return torch.zeros(1, N_FRAMES, N_BANDS), torch.full((1,), N_FRAMES)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of shuffled batches of 32, without replacement."""
        frames, n_frames, digits = load_recordings("train")
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
        for members in order[: len(order) - len(order) % BATCH_SIZE].split(BATCH_SIZE):
            yield (frames[members], n_frames[members]), digits[members]

    def calibration_batches(self) -> Iterator[Inputs]:
        """256 fixed training recordings in batches of 32."""
        frames, n_frames, _ = load_recordings("train")
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(CALIBRATION_SEED))
        members = order[:N_CALIBRATION].split(CALIBRATION_BATCH_SIZE)
        return ((frames[part], n_frames[part]) for part in members)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, batch[1])

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """Accuracy in [0, 1] and mean cross-entropy, in batches of 50.

        Raises:
            InputError: the split is not one of "selection", "test", "test300".
        """
        if split not in SPLITS:
            raise InputError(f"`split` must be one of {', '.join(SPLITS)}, but got {split!r}")
        parts = [part.split(EVALUATION_BATCH_SIZE) for part in load_recordings(split)]
        batches = (((frames, n_frames), digits) for frames, n_frames, digits in zip(*parts, strict=True))
        outputs, targets = predict_all(predict, batches)
        return {"accuracy": accuracy(outputs, targets), "loss": F.cross_entropy(outputs, targets).item()}


@functools.lru_cache(maxsize=4)
def load_recordings(split: str) -> Recordings:
    """Mel power (n, 96, 40), lengths (n,) and digits (n,) of "train" or one of `SPLITS`; kept once per process.

    Raises:
        MissingDataError: the data folder has no recordings.
    """
    with np.load(_file("fsdd_logmel.npz"), allow_pickle=False) as archive:
        log_power, n_frames = archive["logmel"].astype(np.float32), archive["n"].astype(np.int64)
        digit, speaker, take = (archive[name].astype(np.int64) for name in ("digit", "speaker", "index"))
    held_out = take < N_TEST_TAKES
    for_selection = (digit + speaker + take) % 2 == 0
    chosen = {
        "train": ~held_out,
        "selection": held_out & for_selection,
        "test": held_out & ~for_selection,
        "test300": held_out,
    }[split]
    ends = np.cumsum(n_frames)
    frames = np.zeros((int(chosen.sum()), N_FRAMES, N_BANDS), np.float32)
    lengths = np.minimum(n_frames, N_FRAMES)[chosen]
    for row, recording in enumerate(np.flatnonzero(chosen)):
        begin = ends[recording] - n_frames[recording]
        frames[row, : lengths[row]] = 10.0 ** log_power[begin : begin + lengths[row]]
    return torch.from_numpy(frames), torch.from_numpy(lengths), torch.from_numpy(digit[chosen])


def _file(name: str) -> str:
    path = data_folder() / "voice_lstm" / name
    if not path.is_file():
        raise MissingDataError(
            f"voice_lstm needs {path}, which is not there; set {DATA_VARIABLE} to the folder that holds voice_lstm/ "
            "(the Free Spoken Digit Dataset as mel frames, and the classifier's weights)"
        )
    return str(path)
