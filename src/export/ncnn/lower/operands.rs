//! Operands of different shapes: ncnn broadcasts blobs of equal rank as numpy does, and others in its own way, so every
//! operand gets the rank of the result.

use super::{Blob, Lowered, Lowering, Node};
use crate::graph::NodeExt;

impl<'m> Lowering<'m> {
    /// The inputs of an element-wise node as blobs of equal rank, and the axis of the batch in its result.
    pub fn operands(&mut self, node: &Node<'m>) -> Lowered<(Vec<Blob>, Option<usize>)> {
        let result = self.dims(&node.proto.output[0])?;
        let batch = self.common_batch(node, &result)?;
        let blobs = (0..node.proto.input.len()).map(|i| self.operand(node, i, result.len(), batch));
        Ok((blobs.collect::<Lowered<_>>()?, batch))
    }

    /// Input `index` with `rank` axes, the batch at `batch`.
    pub fn operand(
        &mut self,
        node: &Node<'m>,
        index: usize,
        rank: usize,
        batch: Option<usize>,
    ) -> Lowered<Blob> {
        let value = &node.proto.input[index];
        let dims = self.dims(value)?;
        let mut padded = vec![1; rank.saturating_sub(dims.len())];
        padded.extend(dims);
        if self.is_constant(value) {
            return self.constant_blob(node, value, &padded, batch);
        }
        let blob = self.input(node, index)?;
        self.view(node, &blob, &padded, batch)
    }

    /// Whether a value is a constant rather than a blob.
    pub fn is_constant(&self, value: &str) -> bool {
        self.graph.constant(value).is_some()
    }

    /// The axis of the result that is the batch of an input and has the length 1.
    pub fn common_batch(&mut self, node: &Node<'m>, result: &[usize]) -> Lowered<Option<usize>> {
        for index in 0..node.proto.input.len() {
            if self.is_constant(&node.proto.input[index]) {
                continue;
            }
            let blob = self.input(node, index)?;
            let axis = blob.batch.map(|batch| batch + result.len().saturating_sub(blob.rank()));
            if let Some(axis) = axis.filter(|&axis| result.get(axis) == Some(&1)) {
                return Ok(Some(axis));
            }
        }
        Ok(None)
    }

    /// The only value of the constant at input `index`, if it is one that leaves the shape of the result alone.
    pub fn scalar(&self, node: &Node, index: usize) -> Option<f32> {
        let value = node.input_at(index)?;
        let &[scalar] = self.floats(value).ok()?.as_slice() else { return None };
        let other = self.dims(&node.proto.input[1 - index]).ok()?;
        (self.dims(&node.proto.output[0]).ok()? == other).then_some(scalar)
    }
}
