"""How arrays become feeds: one feed as they are, a stack of feeds, or a long first axis to be
split.

What an array means follows from its shape against the model's input:

- same rank, every fixed length equal: one feed;
- one axis more: a stack, one feed per entry of the first axis;
- one axis less, and the input's first axis is 1 or dynamic: one sample without its batch axis;
- same rank and a first axis that is a multiple of the input's fixed batch: split into batches of
  that size;
- same rank and a dynamic first axis longer than `BATCH`: where a whole data set is handed over (a
  file, an array), split into feeds of `BATCH` rows. The first axis is taken to be the batch when
  every input shares it, or is of fixed shape.

Inputs that fit as they are beside others that are stacked or split are fed again each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

from rustq.arrays import Rows
from rustq.errors import DataError
from rustq.samples import Array, Feed, InputInfo, conform, fits, shape_text

__all__ = ["BATCH", "Cut", "plan"]

BATCH = 8
"""Rows per feed when the batch axis is dynamic: keeps the kernels busy in little memory."""


@dataclass(frozen=True)
class Cut:
    """How one array is cut: into slices of `rows` of its first axis, or (0) not at all.

    Attributes:
        rows: rows per feed, or 0 to use the whole array in every feed.
        reshape: `-1` the slices' first axis is dropped, `+1` a batch axis is put in front, `0`
            neither.
    """

    rows: int = 0
    reshape: int = 0

    def pieces(self, source: Rows, first: int = 0) -> Iterator[Array]:
        """The arrays for consecutive feeds; endless when the array is used whole."""
        slices = source.chunks(self.rows, first) if self.rows else repeat(source.whole())
        if self.reshape < 0:
            return (piece[0] for piece in slices)
        if self.reshape > 0:
            return (piece[None] for piece in slices)
        return slices


@dataclass(frozen=True)
class Plan:
    """How the arrays of one source are cut, all together.

    Attributes:
        count: number of feeds.
        cuts: the cut of each input.
        note: what was assumed, or empty.
    """

    count: int
    cuts: Mapping[str, Cut]
    note: str = ""

    def feeds(
        self, sources: Mapping[str, Rows], inputs: Sequence[InputInfo], where: str, first: int = 0
    ) -> Iterator[Feed]:
        """The feeds from `first` on, checked and cast; `where` names the source in errors."""
        pieces = {
            info.name: self.cuts[info.name].pieces(sources[info.name], first) for info in inputs
        }
        step = max(cut.rows for cut in self.cuts.values())
        for number in range(first, self.count):
            place = where
            if step and self.count > 1:
                place = (
                    f"{where}, row {number}" if step == 1 else f"{where}, rows from {number * step}"
                )
            yield {info.name: conform(next(pieces[info.name]), info, place) for info in inputs}
        # Files are closed here: in a destructor, where a forgotten iterator closes them, Python
        # drops every exception, and with it an interrupt that comes at that moment.
        for slices in pieces.values():
            next(slices, None)


def plan(
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Sequence[InputInfo],
    where: str,
    *,
    data_set: bool,
) -> Plan:
    """Decides how arrays of these shapes are cut.

    Args:
        shapes: the shape of the array of each input.
        inputs: the model's inputs.
        where: names the source in errors.
        data_set: whether the arrays are all the data there is, so that a dynamic batch axis may be
            split.

    Raises:
        DataError: a shape does not fit its input, or the inputs hold different numbers of samples.
    """
    cuts = {info.name: _cut(shapes[info.name], info, where) for info in inputs}
    counts = {name: shapes[name][0] // cut.rows for name, cut in cuts.items() if cut.rows}
    if counts:
        count = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            listed = ", ".join(f'"{name}" {n}' for name, n in counts.items())
            raise DataError(f"{where}: the inputs hold different numbers of samples: {listed}")
        for info in inputs:  # a dynamic batch beside a fixed one is cut in step with it
            rows = shapes[info.name][0] if shapes[info.name] else 0
            if not cuts[info.name].rows and _dynamic_batch(info) and rows and rows % count == 0:
                cuts[info.name] = Cut(rows=rows // count)
        return Plan(count, cuts)
    if data_set:
        return _split_dynamic(shapes, inputs, cuts)
    return Plan(1, cuts)


def _cut(shape: tuple[int, ...], info: InputInfo, where: str) -> Cut:
    wanted = info.shape
    if 0 in shape[:1]:
        raise DataError(
            f'{where}, input "{info.name}": no samples, the shape is {shape_text(shape)}'
        )
    if wanted is None or fits(shape, wanted):
        return Cut()
    if fits(shape[1:], wanted) and shape:
        return Cut(rows=1, reshape=-1)
    batch = wanted[0] if wanted else None
    if fits(shape, wanted[1:]) and wanted and (not isinstance(batch, int) or batch == 1):
        return Cut(reshape=1)
    here = (
        f'{where}, input "{info.name}": the model takes {shape_text(wanted)},'
        f" the array is {shape_text(shape)}"
    )
    if (
        isinstance(batch, int)
        and batch > 0
        and len(shape) == len(wanted)
        and fits(shape[1:], wanted[1:])
    ):
        if shape[0] % batch == 0:
            return Cut(rows=batch)
        raise DataError(f"{here}: its {shape[0]} samples do not divide into batches of {batch}")
    raise DataError(f"{here}{_hint(shape, wanted)}")


def _hint(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> str:
    """How to move the channel axis, if that is what is wrong."""
    rank = len(wanted)
    if rank < 3 or len(shape) != rank:
        return ""
    for order in ((0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)):
        moved = tuple(shape[axis] for axis in order)
        if fits(moved, wanted) or fits(moved[1:], wanted[1:]):
            return f": its channel axis is elsewhere, move it with x.transpose{order}"
    return ""


def _dynamic_batch(info: InputInfo) -> bool:
    return bool(info.shape) and not isinstance((info.shape or (1,))[0], int)


def _split_dynamic(
    shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[InputInfo], cuts: dict[str, Cut]
) -> Plan:
    whole = Plan(1, cuts)
    batched = [info for info in inputs if _dynamic_batch(info) and not cuts[info.name].reshape]
    fixed = [
        info
        for info in inputs
        if info.shape is not None and all(isinstance(n, int) for n in info.shape)
    ]
    if not batched or len(batched) + len(fixed) != len(inputs):
        return whole
    lengths = {shapes[info.name][0] for info in batched}
    axes = {info.shape[0] for info in batched if info.shape and info.shape[0] is not None}
    if len(lengths) > 1 or len(axes) > 1:
        return whole
    rows = lengths.pop()
    if rows <= BATCH:
        return whole
    count = -(-rows // BATCH)
    note = f"the {rows} rows of the data are fed {BATCH} at a time: {count} samples"
    return Plan(count, cuts | {info.name: Cut(rows=BATCH) for info in batched}, note)
