"""A `datasets` stream as a sequence of rows."""

import operator
import os

import datasets


class StreamedRows:
    """The rows of an `IterableDataset` by their index, for indices that mostly grow.

    ```python
    stream = datasets.load_dataset("HuggingFaceM4/the_cauldron", "ai2d", split="train", streaming=True)
    rows = StreamedRows(stream.shuffle(seed=0, buffer_size=1000), num_rows=2434)
    ```

    The stream is read forward and the position is remembered. Rows that are passed over are read, but their images are
    not decoded. An index below the last one starts the stream anew and skips to it: right, but slow, so shuffle the
    stream and not the indices.

    The cost of loader workers: each of them reads the whole stream and keeps what is its own, so W workers read the
    files W times. The rows are the same for every number of workers. A worker that starts (also at a resumption) skips
    to its first row with `IterableDataset.skip`.

    Args:
        stream: the rows, not split by node: that is what a sampler over the indices does.
        num_rows: how many of its rows to use, the first ones; by default all, as the dataset's information has it.
            Wrong after `filter` or `take`, which do not change that information.

    Attributes:
        column_names: names of the columns. Where the stream does not know them, its first row is read.
        features: of the columns, or None where the stream does not know them.

    Raises:
        ValueError: `num_rows` is negative, or not given and unknown to the stream; the stream knows no columns and
            has no row.
    """

    def __init__(self, stream: datasets.IterableDataset, num_rows: int | None = None):
        self.num_rows = _known_num_rows(stream) if num_rows is None else operator.index(num_rows)
        if self.num_rows < 0:
            raise ValueError(f"num_rows is the number of rows of the stream, got {num_rows}.")
        self.features = stream.features
        self.stream = stream.decode(False) if self.features else stream
        self.column_names = list(self.features or _first_row(stream))
        self._reset()

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict:
        """The row as a dict.

        Raises:
            IndexError: not a row of these `num_rows`, or the stream ends before it.
        """
        number = operator.index(index)
        if not -self.num_rows <= number < self.num_rows:
            raise IndexError(f"Row {index} is out of range for a stream of {self.num_rows} rows.")
        row = self._read(number % self.num_rows)
        return self.features.decode_example(row) if self.features else dict(row)

    def _read(self, number: int) -> dict:
        forked = self._process_id != os.getpid()  # a forked worker shares file offsets with its parent
        if forked:
            self._parents_batches = self._batches  # kept open: to close it waits for threads that were not forked
        if self._row is None or number < self._number or forked:
            # `iter(stream)` would give a loader worker its share of the files only; batches are of the whole stream
            self._batches = self.stream.skip(number).iter(batch_size=1)
            self._row, self._number = None, number - 1
            self._process_id = os.getpid()
        while self._number < number:
            self._row = None  # if this fails, the next reading starts anew
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError(
                    f"Row {number}: the stream ended before it, so num_rows = {self.num_rows} is wrong. "
                    "Give StreamedRows the number of rows that the stream has."
                )
            self._row = _only_row(batch)
            self._number += 1
        return self._row

    def _reset(self) -> None:
        self._batches = None  # from row `_number` + 1 on
        self._row = None  # row `_number`
        self._number = -1
        self._process_id = os.getpid()
        self._parents_batches = None

    def __getstate__(self) -> dict:
        position = ("_batches", "_row", "_number", "_process_id", "_parents_batches")
        return {name: value for name, value in self.__dict__.items() if name not in position}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()


def _known_num_rows(stream: datasets.IterableDataset) -> int:
    splits = stream.info.splits or {}
    name = str(stream.split)
    if name not in splits or not splits[name].num_examples:
        raise ValueError(
            f"The number of rows of this stream is not known: the dataset's information has no count for the split "
            f"{name!r}. Give num_rows."
        )
    return splits[name].num_examples


def _first_row(stream: datasets.IterableDataset) -> dict:
    batch = next(stream.iter(batch_size=1), None)
    if batch is None:
        raise ValueError("The stream has no rows.")
    return _only_row(batch)


def _only_row(batch: dict) -> dict:
    return {name: values[0] for name, values in batch.items()}


__all__ = ["StreamedRows"]
