"""Bases and least squares against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autocompress.compression.low_rank.algebra import conditioned, correction, output_basis, output_energy, times


def made_up(n_out: int, n_in: int, n_samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (1, out, in) and the second moment (1, in, in) of so few or many inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, n_out, n_in, dtype=torch.float64, generator=generator)
    inputs = torch.randn(n_samples, n_in, dtype=torch.float64, generator=generator)
    return weight, (inputs.mT @ inputs / n_samples)[None]


@pytest.mark.parametrize(("n_out", "n_in", "n_samples"), [(4, 6, 50), (6, 4, 50), (4, 6, 3)])
def test_energies_are_squared_singular_values_of_the_whitened_weight(n_out: int, n_in: int, n_samples: int) -> None:
    weight, second = made_up(n_out, n_in, n_samples)
    second = conditioned(second)
    assert second is not None
    root = np.linalg.cholesky(second[0].numpy())
    expected = np.linalg.svd(weight[0].numpy() @ root, compute_uv=False) ** 2
    basis = output_basis(weight, second)
    np.testing.assert_allclose(basis.energy[0].numpy(), expected, rtol=1e-6, atol=1e-9)
    assert output_energy(weight, second) == pytest.approx(expected.sum())
    gram = basis.vectors[0].mT @ basis.vectors[0]
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64))


def test_a_diagonal_moment_is_the_matrix_with_that_diagonal() -> None:
    weight, second = made_up(3, 5, 40)
    diagonal = second.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(times(weight, diagonal), times(weight, torch.diag_embed(diagonal)))


@pytest.mark.parametrize("n_samples", [50, 3])
def test_the_correction_solves_least_squares_and_is_the_smallest_one(n_samples: int) -> None:
    _, gram = made_up(2, 5, n_samples)
    wanted = torch.randn(1, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ gram
    change = correction(gram, wanted)
    torch.testing.assert_close(change @ gram, wanted, rtol=1e-4, atol=1e-5)
    scale = np.sqrt(np.diag(gram[0].numpy()))  # the norm weighs each feature by its power
    relative = gram[0].numpy() / np.outer(scale, scale)
    smallest = wanted[0].numpy() / scale @ np.linalg.pinv(relative, rcond=1e-9, hermitian=True) / scale
    np.testing.assert_allclose(change[0].numpy(), smallest, rtol=1e-3, atol=1e-3)


def test_a_group_without_inputs_falls_back_to_the_weight() -> None:
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))[None]
    second = conditioned(torch.zeros(1, 3, 3, dtype=torch.float64))
    np.testing.assert_allclose(output_basis(weight, second).energy[0].numpy(), [9.0, 4.0, 1.0])
