"""Distills a student from its teacher: losses, optimizers, and training in rungs."""

from autocompress.distillation.fine_tune import FineTune, Teacher, distill, soft_target_loss, teaching_loss

__all__ = ["FineTune", "Teacher", "distill", "soft_target_loss", "teaching_loss"]
