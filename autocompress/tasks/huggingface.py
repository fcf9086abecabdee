"""Hugging Face models of text as a source of tasks: the class, the output and the tokenizer follow from the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError, MissingExtraError
from autocompress.files import read_json
from autocompress.tasks.identifiers import TaskId
from autocompress.tasks.model_source import KINDS, Kind, ModelSource, model_folder, read_config
from autocompress.tasks.samples import Content

_ENDINGS = {
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "Model": "sentence-embedding",
}
"""How the name of an architecture ends -> what it does; the first match counts."""
_SPEECH = ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "SEW", "Data2VecAudio")
"""Speech encoders, whose classifiers are called `ForSequenceClassification` too."""
_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "text-regression": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "sentence-embedding": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
}
_PLAIN_LENGTH, _STEP, _SHARE = 64, 8, 0.99


class OneOutput(nn.Module):
    """A Hugging Face model whose call returns one tensor: the named field of its output."""

    def __init__(self, model: nn.Module, field: str = "logits") -> None:
        super().__init__()
        self.model = model
        self._field = field

    def forward(self, **inputs: Tensor) -> Tensor:
        """The field of the model's output for keyword inputs."""
        return getattr(self.model(**inputs), self._field)  # type: ignore[no-any-return]


class PooledTokens(nn.Module):
    """A sentence's vector: the mean of its token vectors, or the first one.

    Args:
        model: an encoder with `last_hidden_state`.
        first: take the first token's vector.
    """

    def __init__(self, model: nn.Module, first: bool) -> None:
        super().__init__()
        self.model = model
        self._first = first

    def forward(self, **inputs: Tensor) -> Tensor:
        """Vectors (n, width); `attention_mask` is 1 where there is a token."""
        hidden: Tensor = self.model(**inputs).last_hidden_state
        if self._first:
            return hidden[:, 0]
        weight = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


def open_huggingface(task_id: TaskId) -> ModelSource:
    """The source of a folder or an id.

    Raises:
        InputError: the model cannot be found, is not trusted, or does something that there is no task for.
        MissingExtraError: a library is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("`hf:` ids need transformers; run: pip install 'autocompress[hf]'") from error
    del transformers
    folder = model_folder(task_id.name, task_id.trust_remote_code)
    kind = KINDS[task_id.kind] if task_id.kind else _kind_of(read_config(folder), folder)
    if kind.reads == "text":
        return (DecoderModel if kind.name == "causal-lm" else TextModel)(folder, kind, task_id)
    from autocompress.tasks.image_models import HubImageModel

    return HubImageModel(folder, kind, task_id)


def _kind_of(config: Mapping[str, Any], folder: Path) -> Kind:
    names = config.get("architectures") or []
    architecture = str(names[0]) if names else ""
    ending = next((end for end in _ENDINGS if architecture.endswith(end)), None)
    if ending is None:
        raise InputError(
            f"a model's task follows from `architectures` in its config.json, which must end in one of "
            f"{', '.join(_ENDINGS)}, but {folder} has {architecture or 'none'}; name it with --kind, or write a task "
            "file"
        )
    kind = _ENDINGS[ending]
    if kind == "text-classification" and architecture.startswith(_SPEECH):
        kind = "audio-classification"
    if config.get("problem_type") == "multi_label_classification":
        raise InputError(f"{folder} gives several labels for each text; write a task file with a loss for them")
    n_labels = len(config.get("id2label") or {}) or 2
    if kind == "text-classification" and (config.get("problem_type") == "regression" or n_labels == 1):
        kind = "text-regression"
    if kind not in KINDS:
        raise InputError(f"{folder} is a model for {kind}, which there is no task for yet; write a task file")
    return KINDS[kind]


class HubModel:
    """Base of all sources of a Hugging Face folder: the config and the weights."""

    def __init__(self, folder: Path, kind: Kind, task_id: TaskId) -> None:
        import transformers

        self.folder, self.kind, self._id = folder, kind, task_id
        self.config: Any = self._load(transformers.AutoConfig, "config")
        is_class = kind.metric == "accuracy"
        self.classes: dict[str, int] = (
            {str(n): int(i) for n, i in (self.config.label2id or {}).items()} if is_class else {}
        )
        self.n_outputs = int(self.config.num_labels)
        self.title = str((self.config.architectures or ["model"])[0])

    def load_model(self) -> Any:
        """The model of the kind's class, with the folder's weights.

        Raises:
            InputError: weights are missing, so that a part would be random.
        """
        import transformers

        options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        transformers.utils.logging.disable_progress_bar()
        model, loading = self._load(getattr(transformers, _AUTO[self.kind.name]), "model", **options)
        missing = sorted(loading["missing_keys"])
        if missing and self.kind.name != "sentence-embedding":
            raise InputError(
                f"the weights in {self.folder} must be those of a trained {type(model).__name__}, but they lack "
                f"{', '.join(missing[:5])}, which would be random; fine-tune the model first, or name another --kind"
            )
        return with_linear_layers_(model.eval())

    def _load(self, auto: Any, what: str, **options: Any) -> Any:
        trusted = self._id.trust_remote_code
        try:
            return auto.from_pretrained(self.folder, local_files_only=True, trust_remote_code=trusted, **options)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
            raise InputError(
                f"transformers must read the {what} of {self.folder}, but {type(error).__name__} was raised: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
            ) from error


class TextModel(HubModel):
    """See `ModelSource`: encoders and decoders of text."""

    def __init__(self, folder: Path, kind: Kind, task_id: TaskId) -> None:
        import transformers

        super().__init__(folder, kind, task_id)
        if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
            raise InputError(
                f"a text model needs its tokenizer, but {folder} holds none; write it there: "
                "tokenizer.save_pretrained(folder)"
            )
        self.tokenizer: Any = self._load(transformers.AutoTokenizer, "tokenizer")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.n_tokens = task_id.max_length or min(_PLAIN_LENGTH, self._most_tokens())
        if self.n_tokens > self._most_tokens():
            raise InputError(
                f"max_length must be at most the model's {self._most_tokens()} tokens, but got {self.n_tokens}"
            )

    def build(self) -> nn.Module:
        """See `ModelSource.build`."""
        model = self.load_model()
        if self.kind.name == "sentence-embedding":
            return PooledTokens(model, _takes_first_token(self.folder)).eval()
        if getattr(model.config, "pad_token_id", None) is None:  # classifying decoders look for the last real token
            model.config.pad_token_id = self.tokenizer.pad_token_id
        return OneOutput(model).eval()

    def fit(self, contents: Sequence[Content]) -> str | None:
        """Chooses the length that holds 99 % of the texts, in multiples of 8."""
        lengths = sorted(len(ids) for ids in self._tokens(contents, truncation=False)["input_ids"])
        if self._id.max_length is None:
            wanted = lengths[min(len(lengths) - 1, int(_SHARE * len(lengths)))]
            self.n_tokens = min(self._most_tokens(), -(-wanted // _STEP) * _STEP)
        n_cut = sum(length > self.n_tokens for length in lengths)
        return (
            f"{self.n_tokens} tokens a text, {n_cut / len(lengths):.1%} of the texts are cut (--max-length changes it)"
        )

    def example_inputs(self) -> dict[str, Tensor]:
        """One text of the chosen length."""
        names = self._input_names(self.tokenizer("a", return_tensors="pt"))
        fill = {"token_type_ids": 0}
        shape = (1, self.n_tokens)
        return {name: torch.full(shape, fill.get(name, 1), dtype=torch.long) for name in names}

    def encode(self, contents: Sequence[Content]) -> dict[str, Tensor]:
        """Token ids and mask, each (n, n_tokens), int64."""
        encoded = self._tokens(contents, truncation=True, padding="max_length", return_tensors="pt")
        return {name: encoded[name] for name in self._input_names(encoded)}

    def unreadable(self, contents: Sequence[Content]) -> dict[int, str]:
        """None: blank texts were left out when the table was read."""
        return {}

    def _tokens(self, contents: Sequence[Content], **options: Any) -> Any:
        if options["truncation"]:
            options["max_length"] = self.n_tokens
        first, second = zip(*(_pair(content) for content in contents), strict=True)
        pairs = [list(second)] if second[0] is not None else []
        return self.tokenizer(list(first), *pairs, verbose=False, **options)

    def _input_names(self, encoded: Any) -> list[str]:
        return [name for name in self.tokenizer.model_input_names if name in encoded]

    def _most_tokens(self) -> int:
        positions = getattr(self.config, "max_position_embeddings", None) or 512
        offset = 2 if self.config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet") else 0
        return int(min(positions - offset, self.tokenizer.model_max_length))


class DecoderModel(TextModel):
    """A decoder: reads plain text in blocks, and gives the logits of each next token."""

    @classmethod
    def open(cls, task_id: TaskId) -> DecoderModel:
        """The decoder of a folder or an id; see `open_huggingface`."""
        source = open_huggingface(task_id)
        if not isinstance(source, cls):
            raise InputError(f"hf:{task_id.name} must be a causal language model, but is one for {source.kind.name}")
        return source

    def build(self) -> nn.Module:
        """See `ModelSource.build`; without a key-value cache, as a prompt is read."""
        model = self.load_model()
        model.config.use_cache = False
        return OneOutput(model).eval()

    def example_inputs(self) -> dict[str, Tensor]:
        """One block of tokens."""
        return {"input_ids": torch.ones(1, self.n_tokens, dtype=torch.long)}

    def blocks(self, texts: Sequence[str]) -> Tensor:
        """All tokens in order, texts apart by the end mark where there is one, cut into (n_blocks, n_tokens)."""
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        tokens = torch.tensor([token for text in encoded for token in (*text, *end)], dtype=torch.long)
        n_blocks = len(tokens) // self.n_tokens
        return tokens[: n_blocks * self.n_tokens].reshape(n_blocks, self.n_tokens)


def with_linear_layers_(model: Any) -> Any:
    """Puts `nn.Linear` in the place of GPT-2's `Conv1D`, which stores the same weight transposed; returns the model.

    Ranks and bits are offered for linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(child.nx, child.nf)
                with torch.no_grad():
                    linear.weight.copy_(child.weight.T)
                    linear.bias.copy_(child.bias)
                setattr(module, name, linear.eval())
    return model


def _pair(content: Content) -> tuple[str, str | None]:
    if isinstance(content, tuple):
        if len(content) > 2:
            raise InputError(f"a model reads one text or a pair of texts, but got {len(content)} text columns")
        return content[0], content[1] if len(content) == 2 else None
    return str(content), None


def _takes_first_token(folder: Path) -> bool:
    """The pooling that sentence-transformers wrote into the model's folder; the mean where it wrote none."""
    file = folder / "1_Pooling" / "config.json"
    return file.is_file() and bool(read_json(file, "pooling's config").get("pooling_mode_cls_token"))
