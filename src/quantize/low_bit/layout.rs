//! Where the inputs of each output channel lie in memory, and what of them is read at a time.

use std::ops::Range;

use super::ruler::LANES;

/// Channels that are read together where each lies in memory as a whole.
const GROUP: usize = 32;

/// Values that are read at a time.
const PART: usize = 1 << 15;

/// Where the inputs of each output channel lie in a weight tensor, or in a part of one: `outer × channels × inner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    outer: usize,
    pub channels: usize,
    inner: usize,
}

impl Layout {
    /// Of a tensor whose channels are along `axis`.
    pub fn new(dims: &[usize], axis: usize) -> Self {
        let count = |dims: &[usize]| dims.iter().product();
        Self { outer: count(&dims[..axis]), channels: dims[axis], inner: count(&dims[axis + 1..]) }
    }

    /// Inputs of a channel.
    pub fn depth(&self) -> usize {
        self.outer * self.inner
    }

    /// Whether each channel lies in memory as a whole.
    pub fn in_rows(&self) -> bool {
        self.outer == 1
    }

    /// Position in the tensor of input `k` of `channel`.
    pub fn place(&self, channel: usize, k: usize) -> usize {
        (k / self.inner * self.channels + channel) * self.inner + k % self.inner
    }

    /// Channel, and input of it, at a position in the tensor.
    pub fn at(&self, place: usize) -> (usize, usize) {
        let (row, i) = (place / self.inner, place % self.inner);
        (row % self.channels, row / self.channels * self.inner + i)
    }

    /// Values between one input of a channel and the next, where channels do not lie in memory as a whole.
    pub fn width(&self) -> usize {
        (self.channels * self.inner).max(1)
    }

    /// How many values that lie together are whole blocks, and about as many as are read at a time.
    pub fn part(&self, block: usize) -> usize {
        let width = self.width();
        if self.in_rows() {
            GROUP * self.inner
        } else if self.inner == 1 {
            (PART / (block * width)).max(1) * block * width
        } else {
            self.outer * width
        }
    }

    /// Of so many values of a [`part`](Self::part).
    pub fn of_part(&self, values: usize) -> Self {
        if self.in_rows() {
            Self { channels: values / self.inner, ..*self }
        } else {
            Self { outer: values / self.width(), ..*self }
        }
    }

    /// The channels, as many at a time as a strip has.
    pub fn strips(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        let channels = self.channels;
        (0..channels).step_by(LANES).map(move |first| first..channels.min(first + LANES))
    }

    /// The positions of what these channels have in each row that lies together: the first input, and where they begin.
    pub fn rows(&self, channels: &Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let (outer, inner, all, first) = (self.outer, self.inner, self.channels, channels.start);
        (0..outer).map(move |row| (row * inner, (row * all + first) * inner))
    }

    /// Takes the weights, or levels, of these channels, side by side; lanes without a channel are 0.
    pub fn take<T: Copy + Default>(&self, all: &[T], channels: &Range<usize>, strip: &mut [[T; LANES]]) {
        if channels.len() < LANES {
            strip.fill([T::default(); LANES]);
        }
        for (k, start) in self.rows(channels) {
            if self.inner == 1 {
                copy(&all[start..][..channels.len()], &mut strip[k]);
                continue;
            }
            for (lane, values) in all[start..].chunks(self.inner).take(channels.len()).enumerate() {
                for (of_input, &value) in strip[k..].iter_mut().zip(values) {
                    of_input[lane] = value;
                }
            }
        }
    }

    /// Puts the levels of these channels where they belong.
    pub fn put(&self, strip: &[[i8; LANES]], channels: &Range<usize>, all: &mut [i8]) {
        for (k, start) in self.rows(channels) {
            if self.inner == 1 {
                copy(&strip[k], &mut all[start..][..channels.len()]);
                continue;
            }
            for (lane, values) in all[start..].chunks_mut(self.inner).take(channels.len()).enumerate() {
                for (value, of_input) in values.iter_mut().zip(&strip[k..]) {
                    *value = of_input[lane];
                }
            }
        }
    }
}

/// Copies as many values as there are and as there is room for: a whole row of a strip without a call.
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<LANES>(), to.first_chunk_mut()) {
        *to = *from;
    } else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
}
