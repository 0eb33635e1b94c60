//! Which scale belongs to which element, and the walk over an array in runs that share a kernel call.

use super::threads::{SHARE, share, share_out, summarize};
use super::{Real, stream};

/// How the parameters lie along a C-contiguous array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Along {
    /// One scale for all.
    Tensor,
    /// A scale for each of `channels`, of `inner` neighbouring elements each, over and over.
    Axis {
        /// Length of the axis.
        channels: usize,
        /// Product of the axes after it.
        inner: usize,
    },
    /// ONNX's blocked quantization: a scale for every `block` elements along an axis, at each place of the other axes.
    Blocks {
        /// Length of the axis.
        length: usize,
        /// Elements that share a scale; the last block may be shorter.
        block: usize,
        /// Product of the axes after it.
        inner: usize,
    },
}

/// The parameters of neighbouring elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// All have the one at this place.
    One(usize),
    /// They have one each, from this place on.
    Each(usize),
}

/// So many elements take much longer than calling a kernel, and their parameters stay in the first-level cache while others
/// of as many elements are read ahead.
pub const LONG: usize = 1024;

impl Along {
    /// How often the parameters are to be repeated for runs of elements with one each, and how they lie then: 0 times if there
    /// are no such runs, so often that the runs are long if every row of the array has the same.
    pub(super) fn repeated(self, elements: usize) -> (usize, Self) {
        match self {
            Self::Axis { channels, inner: 1 } => {
                let times = (LONG.min(elements) / channels.max(1)).max(1);
                (times, Self::Axis { channels: times * channels, inner: 1 })
            }
            Self::Blocks { inner, .. } if inner != 1 => (1, self),
            _ => (0, self),
        }
    }

    /// Elements that are stored past the caches together, or 1 for any number: parts of rows take longer than parts of lines.
    fn unit(self) -> usize {
        match self {
            Self::Axis { channels, inner: 1 } if channels <= stream::PIECE => channels,
            _ => 1,
        }
    }

    /// How many elements from `at` on are one run, and their parameters.
    fn run(self, at: usize) -> (usize, Run) {
        match self {
            Self::Tensor => (usize::MAX, Run::One(0)),
            Self::Axis { channels, inner: 1 } => (channels - at % channels, Run::Each(at % channels)),
            Self::Axis { channels, inner } => (inner - at % inner, Run::One(at / inner % channels)),
            Self::Blocks { length, block, inner } => {
                let (row, column) = (at / inner, at % inner);
                let (outer, place) = (row / length, row % length);
                let index = outer * length.div_ceil(block) + place / block;
                if inner == 1 {
                    ((block - place % block).min(length - place), Run::One(index))
                } else {
                    (inner - column, Run::Each(index * inner + column))
                }
            }
        }
    }
}

/// Runs `kernel(its input, their parameters, its output)` over a whole array, one or the other of type `R`, by several threads
/// if it is large.
pub fn map<R: Real, I: Sync, O: Copy + Default + Send>(
    along: Along,
    x: &[I],
    out: &mut [O],
    kernel: impl Fn(&[I], Run, &mut [O]) + Sync,
) {
    assert_eq!(x.len(), out.len());
    let streaming = stream::beyond_caches(out);
    let each = |start: usize, x: &[I], out: &mut [O]| {
        if !streaming {
            each_run::<R>(along, start, x.len(), |range, run| {
                kernel(&x[range.clone()], run, &mut out[range])
            });
            return;
        }
        stream::through(out, along.unit(), |part, out| {
            let x = &x[part.clone()];
            each_run::<R>(along, start + part.start, x.len(), |range, run| {
                kernel(&x[range.clone()], run, &mut out[range]);
            });
        });
    };
    let size = share(streaming);
    let parts = x.chunks(size).zip(out.chunks_mut(size)).enumerate();
    share_out(x.len(), parts, |(i, (x, out))| each(i * size, x, out));
}

/// The sum of `kernel(its input, their parameters)`, always added in the same order.
pub fn sum<R: Real>(along: Along, x: &[R], kernel: impl Fn(&[R], Run) -> f64 + Sync) -> f64 {
    let share = |x: &[R], start| {
        let mut total = 0.0;
        each_run::<R>(along, start, x.len(), |range, run| total += kernel(&x[range], run));
        total
    };
    summarize(x, SHARE, share, |a, b| a + b).unwrap_or_default()
}

/// Splits `length` elements, the first of which is number `start` of the array, into runs of at most
/// [`Real::AT_ONCE`].
fn each_run<R: Real>(
    along: Along,
    start: usize,
    length: usize,
    mut each: impl FnMut(std::ops::Range<usize>, Run),
) {
    let mut at = 0;
    while at < length {
        let (most, run) = along.run(start + at);
        let end = at + most.min(R::AT_ONCE).min(length - at);
        each(at..end, run);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// Index of the parameter of every element, by definition: `outer × length × inner` elements.
    fn indices(along: Along, n: usize) -> Vec<usize> {
        (0..n)
            .map(|at| match along {
                Along::Tensor => 0,
                Along::Axis { channels, inner } => at / inner % channels,
                Along::Blocks { length, block, inner } => {
                    let (outer, place, column) = (at / inner / length, at / inner % length, at % inner);
                    (outer * length.div_ceil(block) + place / block) * inner + column
                }
            })
            .collect()
    }

    #[test]
    fn every_element_meets_its_parameters() {
        let axis = [(1, 1), (3, 1), (70_001, 1), (3, 7), (2, 70_001)];
        let blocks = [(1, 1, 1), (7, 3, 1), (7, 3, 5), (6, 3, 1), (40_000, 12_345, 2), (9, 100, 4)];
        let axis = axis.map(|(channels, inner)| Along::Axis { channels, inner });
        let blocks = blocks.map(|(length, block, inner)| Along::Blocks { length, block, inner });
        for along in [Along::Tensor].into_iter().chain(axis).chain(blocks) {
            for outer in [1, 3] {
                let n = outer
                    * match along {
                        Along::Tensor => 200_000,
                        Along::Axis { channels, inner } => channels * inner,
                        Along::Blocks { length, inner, .. } => length * inner,
                    };
                let x: Vec<usize> = (0..n).collect();
                let mut out = vec![usize::MAX; n];
                map::<f16, _, _>(along, &x, &mut out, |x, run, out| {
                    for (i, out) in (0..x.len()).zip(out) {
                        *out = match run {
                            Run::One(index) => index,
                            Run::Each(index) => index + i,
                        };
                    }
                });
                assert!(out == indices(along, n), "{along:?}, {n} elements");
                assert_eq!(sum(along, &vec![f16::ZERO; n], |x, _| x.len() as f64), n as f64);
            }
        }
    }
}
