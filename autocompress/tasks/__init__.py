"""The ready-made tasks by name; their modules are imported only when asked for."""

from __future__ import annotations

TASKS: dict[str, str] = {
    "digits": "autocompress.tasks.digits:DigitsTask",
    "digits:noisy": "autocompress.tasks.digits:NoisyDigitsTask",
    "cifar10:resnet20": "autocompress.tasks.cifar10:resnet20",
    "cifar10:resnet56": "autocompress.tasks.cifar10:resnet56",
    "sst2:minilm": "autocompress.tasks.sst2:Sst2Task",
    "voice_lstm": "autocompress.tasks.voice_lstm:VoiceLstmTask",
}
"""Spec -> "module:attribute", as `autocompress.task.load_task` reads it."""
