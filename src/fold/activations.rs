//! Activations that exporters spell out, put together again.
//!
//! `clip(x + 3, 0, 6) · y ÷ 6` (hard-swish where y = x, and the gate of a squeeze-and-excitation block), in any order of
//! the division, becomes `HardSigmoid(x) · y` with α = 1/6, β = 1/2: clip(x / 6 + 1/2, 0, 1) = clip(x + 3, 0, 6) / 6
//! (Howard et al. 2019, section 5.2).

use super::Verdict;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::patch::{Patch, float_attribute, node};
use crate::tensor::floats;

/// The bounds of the clip in a hard-sigmoid.
const CLIP_BOUNDS: [f32; 2] = [0.0, 6.0];

/// The rule, asked about the `Clip`.
pub(super) fn hard_sigmoid(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let clip = graph.node(id);
    if !clip.is("Clip") || clip_bounds(graph, id) != Some(CLIP_BOUNDS) {
        return Ok(Verdict::Pass);
    }
    let Some((add, x)) = plus_three(graph, &clip.input[0]) else {
        return Ok(Verdict::Pass);
    };
    if graph.sole_consumer(&clip.input[0]) != Some(id) {
        return Ok(Verdict::Pass);
    }
    let Some(scaled) = sixth(graph, &clip.output[0]) else { return Ok(Verdict::Pass) };
    let mut patch = Patch::default();
    let hard_sigmoid = |output: &str| {
        let mut node = node("HardSigmoid", clip.name(), &[x], &[output]);
        node.attribute = vec![float_attribute("alpha", 1.0 / 6.0), float_attribute("beta", 0.5)];
        node
    };
    patch.remove(add);
    match scaled {
        Scaled::Directly { division } => {
            patch.replace(id, vec![hard_sigmoid(&graph.node(division).output[0])]);
            patch.remove(division);
        }
        Scaled::Behind { product, division } => {
            patch.replace(id, vec![hard_sigmoid(&clip.output[0])]);
            let mut product_node = graph.node(product).clone();
            product_node.output.clone_from(&graph.node(division).output);
            patch.replace(product, vec![product_node]);
            patch.remove(division);
        }
    }
    Ok(Verdict::Edit(patch))
}

/// Where the division by six is.
enum Scaled {
    /// Right behind the clip.
    Directly { division: NodeId },
    /// Behind the product of the clip and something else.
    Behind { product: NodeId, division: NodeId },
}

fn sixth(graph: &Graph, clipped: &str) -> Option<Scaled> {
    let reader = graph.sole_consumer(clipped)?;
    if is_division_by_six(graph, reader) {
        return Some(Scaled::Directly { division: reader });
    }
    let product = graph.node(reader);
    let division = graph.sole_consumer(product.output.first()?)?;
    let plain = product.is("Mul") && product.input.iter().filter(|i| *i == clipped).count() == 1;
    (plain && is_division_by_six(graph, division)).then_some(Scaled::Behind { product: reader, division })
}

fn is_division_by_six(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let [left, right] = node.input.as_slice() else { return false };
    match node.op_type() {
        "Div" if node.is("Div") => scalar(graph, right) == Some(6.0),
        "Mul" if node.is("Mul") => {
            let factor = scalar(graph, left).or_else(|| scalar(graph, right));
            factor.is_some_and(|f| (f * 6.0 - 1.0).abs() < 1e-6)
        }
        _ => false,
    }
}

/// The `Add` that makes `value` as `x + 3` (in either order), and x.
fn plus_three<'m>(graph: &Graph<'m>, value: &str) -> Option<(NodeId, &'m str)> {
    let id = graph.producer(value)?;
    let node = graph.node(id);
    let [left, right] = node.input.as_slice() else { return None };
    let x = match (scalar(graph, left), scalar(graph, right)) {
        (None, Some(3.0)) => left,
        (Some(3.0), None) => right,
        _ => return None,
    };
    node.is("Add").then_some((id, x.as_str()))
}

/// Lower and upper bound of a `Clip`, from inputs or, before operator set 11, attributes.
pub(crate) fn clip_bounds(graph: &Graph, id: NodeId) -> Option<[f32; 2]> {
    let node = graph.node(id);
    let bound = |index: usize, attribute: &str, default: f32| match node.input_at(index) {
        Some(name) => scalar(graph, name),
        None => Some(node.float(attribute, default)),
    };
    Some([bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?])
}

fn scalar(graph: &Graph, name: &str) -> Option<f32> {
    match floats(graph.constant(name)?).ok()?.as_slice() {
        &[value] => Some(value),
        _ => None,
    }
}
