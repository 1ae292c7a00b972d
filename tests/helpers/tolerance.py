"""How close two results must be, for every test: in roundings of their dtype, relative to their largest magnitude.

What holds on every machine: weights and files are the same bit for bit, and so is one computation repeated on the same
tensors in one process; they are compared with `torch.equal`. What is computed from tensors that are laid out otherwise
(another batch, other padding, weights loaded to other addresses) or by another path takes other kernels, which sum in
another order. How far apart that leaves two results depends on the processor, the libraries and the number of threads,
but not on the unit of the values. So it is counted in roundings of the largest of them.
"""

import torch


def assert_close_relative(actual, expected, roundings: float = 256, *, dtype=None, scale: float = 0.0, what="values"):
    """No value is further from the expected one than `roundings` roundings of the largest expected magnitude.

    Args:
        actual, expected: tensors on any device, arrays or numbers of the same shape, all finite. The lowest number of
            the dtype, which some VLMs give to tokens that are never said, must be in the same places and has no other
            effect.
        roundings: of a value as large as the largest magnitude in `expected`; 256 are 3e-5 of it in float32.
        dtype: what was computed in, if not the coarser dtype of the two (a loss read from a log is a Python float).
        scale: the largest magnitude counts as at least this, where that of `expected` alone is nothing but rounding
            (a gradient that is zero on paper).
        what: begins the message.
    """
    actual, expected = (torch.as_tensor(values).detach().cpu() for values in (actual, expected))
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    never = expected.abs() >= (torch.finfo(expected.dtype).max if expected.is_floating_point() else float("inf"))
    assert torch.equal(actual[never], expected[never]), f"{what}: other tokens are never said"
    actual, expected = actual[~never], expected[~never]
    assert expected.numel(), f"{what}: nothing to compare"
    rounding = max(torch.finfo(t).eps for t in ([dtype] if dtype else [actual.dtype, expected.dtype]))
    largest = max(expected.double().abs().max().item(), scale)
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= roundings * rounding * largest, (
        f"{what}: off by {error:.1e}, that is {error / (rounding * largest or 1):.0f} roundings of the largest "
        f"magnitude, {largest:.1e}; allowed are {roundings:g}"
    )


def assert_gradients_close(found: dict, expected: dict, roundings: float = 256) -> None:
    """Gradients by name: None in the same places, each other within `roundings` of its own largest magnitude.

    A gradient that is zero on paper (of a bias before a softmax) is rounding of larger ones: its magnitude counts as at
    least a hundredth of the largest gradient of all.
    """
    assert found.keys() == expected.keys()
    given = {name: gradient for name, gradient in expected.items() if gradient is not None}
    assert given, "nobody has a gradient"
    scale = 0.01 * max(gradient.abs().max().item() for gradient in given.values())
    for name in expected:
        assert (found[name] is None) == (name not in given), f"{name}: {'no ' if name in given else 'a '}gradient"
        if name in given:
            assert_close_relative(found[name], given[name], roundings, scale=scale, what=name)
