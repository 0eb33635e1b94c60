//! What the windows of a convolution see at some positions, in the order of its weights: channels, then the window.

use crate::graph::NodeExt;
use crate::onnx::NodeProto;

/// The geometry of a convolution.
#[derive(Debug, Clone)]
pub(super) struct Windows {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// Before the first element of each dimension.
    before: Vec<usize>,
    /// Behind the last one.
    behind: Vec<usize>,
}

impl Windows {
    /// Of `node` with a window of these lengths; `None` if padding follows from the input.
    pub fn of(node: &NodeProto, kernel: &[usize]) -> Option<Self> {
        let automatic = node.attribute("auto_pad").map(|a| a.s().to_vec());
        if automatic.is_some_and(|kind| !kind.is_empty() && kind != b"NOTSET" && kind != b"VALID") {
            return None;
        }
        let rank = kernel.len();
        let lengths = |name: &str, default: usize, count: usize| match node.attribute(name) {
            None => Some(vec![default; count]),
            Some(list) => {
                let list: Option<Vec<_>> = list.ints.iter().map(|&v| usize::try_from(v).ok()).collect();
                list.filter(|list| list.len() == count)
            }
        };
        let pads = lengths("pads", 0, 2 * rank)?;
        let (strides, dilations) = (lengths("strides", 1, rank)?, lengths("dilations", 1, rank)?);
        if strides.contains(&0) || dilations.contains(&0) {
            return None;
        }
        let (before, behind) = (pads[..rank].to_vec(), pads[rank..].to_vec());
        Some(Self { kernel: kernel.to_vec(), strides, dilations, before, behind })
    }

    /// Elements of a window.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Positions along each dimension of an input of these lengths; `None` if the window does not fit.
    pub fn positions(&self, lengths: &[usize]) -> Option<Vec<usize>> {
        let along = |d: usize| {
            let padded = lengths[d] + self.before[d] + self.behind[d];
            let reach = self.dilations[d] * (self.kernel[d] - 1) + 1;
            Some(padded.checked_sub(reach)? / self.strides[d] + 1)
        };
        if lengths.len() != self.kernel.len() { None } else { (0..lengths.len()).map(along).collect() }
    }

    /// Where, in a channel of an input of these lengths, each element of the window at position number `at` is; `None`
    /// in the padding.
    pub fn elements(&self, lengths: &[usize], positions: &[usize], at: usize) -> Vec<Option<usize>> {
        (0..self.taps())
            .map(|tap| {
                let (mut tap, mut at, mut element, mut stride) = (tap, at, 0, 1);
                for d in (0..lengths.len()).rev() {
                    let (k, o) = (tap % self.kernel[d], at % positions[d]);
                    (tap, at) = (tap / self.kernel[d], at / positions[d]);
                    let place = (o * self.strides[d] + k * self.dilations[d]).checked_sub(self.before[d])?;
                    if place >= lengths[d] {
                        return None;
                    }
                    element += place * stride;
                    stride *= lengths[d];
                }
                Some(element)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::{int_attribute, node};

    fn conv(lists: &[(&str, &[i64])]) -> NodeProto {
        let mut conv = node("Conv", "", &[], &[]);
        for (name, values) in lists {
            let mut attribute = int_attribute(name, 0);
            attribute.i = None;
            attribute.ints = values.to_vec();
            conv.attribute.push(attribute);
        }
        conv
    }

    #[test]
    fn windows_with_padding_strides_and_dilation() {
        let node = conv(&[("pads", &[1, 0, 0, 1]), ("strides", &[2, 1]), ("dilations", &[1, 2])]);
        let windows = Windows::of(&node, &[2, 2]).unwrap();
        let (lengths, positions) = ([3, 4], windows.positions(&[3, 4]).unwrap());
        assert_eq!(positions, [2, 3]);
        assert_eq!(windows.elements(&lengths, &positions, 0), [None, None, Some(0), Some(2)]);
        // Row 1 starts at line 1; column 2 reaches into the padding.
        assert_eq!(windows.elements(&lengths, &positions, 5), [Some(6), None, Some(10), None]);
        assert!(windows.positions(&[0, 4]).is_none());
        assert!(Windows::of(&conv(&[("strides", &[0, 1])]), &[2, 2]).is_none());
    }
}
