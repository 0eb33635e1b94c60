//! The smallest layers, whose weights are int8 where those of the others are int4 or uint4.
//!
//! Rounding the weights of a layer puts noise into its results in proportion to them, however few the weights are; bytes
//! are saved in proportion to their number. So the bits are worth most where the weights are fewest: in the first layers of
//! a network, and in depthwise convolutions, whose few weights to a channel need as many bytes again for its scale.
//! The other formats are for hardware that multiplies by nothing else.

use super::{CODECS, Format};
use crate::graph::{Graph, NodeExt};
use crate::ops::PRODUCTS;
use crate::tensor::shape;

/// One in so many weights may be int8: the codes of 4 bits are then at most 3 % larger.
const ONE_IN: usize = 32;

impl Format {
    /// With int8 weights in the smallest layers of a model.
    pub fn sparing(self, graph: &Graph) -> Self {
        if !self.codec.has_blocks() {
            return self;
        }
        let products = graph.nodes().iter().filter(|node| PRODUCTS.iter().any(|op_type| node.is(op_type)));
        let weights = products.filter_map(|node| graph.constant(node.input_at(1)?));
        let count = |dims: Vec<usize>| dims.into_iter().fold(1, usize::saturating_mul);
        let counts = weights.filter_map(|weights| Some(count(shape(weights).ok()?)));
        Self { spared: largest_spared(counts.collect()), ..self }
    }

    /// The format of a layer with so many weights.
    pub fn of_layer(self, count: usize) -> Self {
        let int8 = &CODECS[0];
        if count <= self.spared { Self { codec: int8, block: None, ..self } } else { self }
    }
}

/// How many weights the largest layer has that is spared with all of its size.
fn largest_spared(mut counts: Vec<usize>) -> usize {
    counts.sort_unstable();
    let added = |counts: &[usize]| counts.iter().fold(0, |sum: usize, &count| sum.saturating_add(count));
    let most = added(&counts) / ONE_IN;
    let mut sum = 0_usize;
    let alike = counts.chunk_by(|a, b| a == b).take_while(|alike| {
        sum = sum.saturating_add(added(alike));
        sum <= most
    });
    alike.last().map_or(0, |alike| alike[0])
}

#[cfg(test)]
mod tests {
    use super::largest_spared;

    #[test]
    fn layers_of_one_size_share_their_fate() {
        assert_eq!(largest_spared(vec![]), 0);
        assert_eq!(largest_spared(vec![100]), 0);
        assert_eq!(largest_spared(vec![960, 9, 31, 9]), 9);
        assert_eq!(largest_spared(vec![983, 9, 31, 9, 9]), 9);
        assert_eq!(largest_spared(vec![3200, 31, 27, 31]), 31);
        assert_eq!(largest_spared(vec![64; 1000]), 0);
    }
}
