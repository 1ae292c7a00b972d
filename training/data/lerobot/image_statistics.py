"""Statistics in LeRobot's form: min, max, mean, std (of the population), count and quantiles, all exact."""

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
CHANNEL_OFFSETS = 256 * np.arange(3)


def vector_statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of a column over its frames.

    Args:
        values: (T, D), numbers.

    Returns:
        `min` and `max` (D,), int64 for integers and float64 otherwise; `mean`, `std` and the quantiles (with linear
        interpolation), float64 (D,); `count` int64 (1,), the number of frames.
    """
    if not np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.float64)  # float32 sums over many frames lose digits
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)  # (5, D)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def channel_histogram(images: np.ndarray) -> np.ndarray:
    """How often each pixel value occurs in each channel: uint8 (T, H, W, 3) to int64 (3, 256).

    Pixel values are whole numbers, so the histogram says everything about them in a few kilobytes, and histograms of
    episodes add up to the dataset's.
    """
    histogram = np.zeros(3 * 256, np.int64)
    for image in images:  # one by one: `bincount` needs eight bytes for each of a pixel's three
        histogram += np.bincount((image + CHANNEL_OFFSETS).ravel(), minlength=len(histogram))
    return histogram.reshape(3, 256)


def image_statistics(histogram: np.ndarray, num_frames: int) -> dict[str, np.ndarray]:
    """Statistics of all pixels in a channel histogram, with pixel values in [0, 1] as LeRobot has them.

    Args:
        histogram: (3, 256), see `channel_histogram`.

    Returns:
        Like `vector_statistics`, each of shape (3, 1, 1); `count` is (1,), the number of frames.
    """
    values = np.arange(256) / 255.0
    pixels = histogram.sum(axis=1)  # (3,)
    mean = histogram @ values / pixels
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / pixels
    statistics = {
        "min": values[(histogram > 0).argmax(axis=1)],
        "max": values[255 - (histogram[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(variance),
    }
    statistics |= {name: _histogram_quantile(histogram, q) / 255.0 for name, q in QUANTILES.items()}
    statistics = {name: statistic[:, None, None] for name, statistic in statistics.items()}
    return statistics | {"count": np.array([num_frames])}


def _histogram_quantile(histogram: np.ndarray, q: float) -> np.ndarray:
    """(3,) `np.quantile` (with linear interpolation) of the pixel values that a histogram stands for."""
    quantiles = []
    for cumulated in histogram.cumsum(axis=1):
        position = q * (cumulated[-1] - 1)  # among the sorted pixels
        below, above = np.searchsorted(cumulated, [np.floor(position), np.ceil(position)], side="right")
        quantiles.append(below + (above - below) * (position % 1))
    return np.array(quantiles)
