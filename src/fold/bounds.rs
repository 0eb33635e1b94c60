//! The bounds of `Clip` and `Relu`, one behind the other.

use super::pairs::{Merged, Pair};
use super::parameters::scalar;
use crate::graph::{Graph, NodeExt};
use crate::onnx::NodeProto;
use crate::patch::float_attribute;
use crate::tensor::{floats_like, is_float};

/// A bound and how the node says it.
#[derive(Clone, Copy)]
struct Bound<'a> {
    value: f64,
    said: Said<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Said<'a> {
    /// Not at all: infinite, or the zero of a `Relu`.
    Implied,
    Attribute,
    Input(&'a str),
}

/// Operators whose result is never negative.
const NON_NEGATIVE: &[&str] = &["Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt"];

/// Lower and upper bound of a `Relu` or `Clip`.
fn bounds<'a>(graph: &Graph, node: &'a NodeProto) -> Option<[Bound<'a>; 2]> {
    let implied = |value| Bound { value, said: Said::Implied };
    let bound = |index: usize, name: &str, none: f64| match (node.input_at(index), node.attribute(name)) {
        (Some(input), _) => Some(Bound { value: scalar(graph, input)?, said: Said::Input(input) }),
        (None, Some(a)) => Some(Bound { value: a.f().into(), said: Said::Attribute }),
        (None, None) => Some(implied(none)),
    };
    let bounds = if node.is("Relu") {
        [implied(0.0), implied(f64::INFINITY)]
    } else if node.is("Clip") {
        [bound(1, "min", f64::NEG_INFINITY)?, bound(2, "max", f64::INFINITY)?]
    } else {
        return None;
    };
    (bounds[0].value <= bounds[1].value).then_some(bounds)
}

/// Whether nothing that `graph` has under the name `value` is negative.
pub(super) fn is_non_negative(graph: &Graph, value: &str) -> bool {
    graph.producer(value).is_some_and(|id| {
        let node = graph.node(id);
        NON_NEGATIVE.iter().any(|op_type| node.is(op_type))
            || bounds(graph, node).is_some_and(|[lower, _]| lower.value >= 0.0)
    })
}

/// Clips one behind the other, and a `Relu` of what is not negative.
pub(super) fn clips(pair: Pair) -> Option<Merged> {
    let Pair { graph, first, second } = pair;
    if second.is("Relu") && NON_NEGATIVE.iter().any(|op_type| first.is(op_type)) {
        return Some(Merged::First);
    }
    let inner = bounds(graph, first)?;
    let [lower, upper] = bounds(graph, second)?;
    let within = |bound: Bound<'_>| bound.value >= lower.value && bound.value <= upper.value;
    if inner.into_iter().all(within) {
        return Some(Merged::First);
    }
    let narrowed = inner.map(|b| match b.value {
        v if v < lower.value || v == lower.value && b.said == Said::Implied => lower,
        v if v > upper.value => upper,
        _ => b,
    });
    written(pair, narrowed)
}

/// The second node with the bounds `bounds`, reading what the first reads.
fn written(pair: Pair, bounds: [Bound; 2]) -> Option<Merged> {
    let mut node = pair.without_first();
    node.input.truncate(1);
    node.attribute.clear();
    if bounds.iter().all(|b| b.said == Said::Implied) {
        if bounds[0].value == 0.0 {
            node.op_type = Some("Relu".to_owned());
        }
        return Some(Merged::Single(node, Vec::new()));
    }
    node.op_type = Some("Clip".to_owned());
    let finite = || bounds.iter().zip(["min", "max"]).filter(|(b, _)| b.value.is_finite());
    if bounds.iter().any(|b| b.said == Said::Attribute) {
        node.attribute = finite().map(|(b, name)| float_attribute(name, b.value as f32)).collect();
        return Some(Merged::Single(node, Vec::new()));
    }
    let mut zero = Vec::new();
    for bound in bounds {
        node.input.push(match bound.said {
            Said::Input(name) => name.to_owned(),
            Said::Implied if bound.value.is_infinite() => String::new(),
            _ => {
                let name = pair.graph.fresh(&format!("{}.min", node.output[0]), None);
                let like = bounds.iter().find_map(|b| match b.said {
                    Said::Input(name) => pair.graph.constant(name).filter(|t| is_float(t)),
                    _ => None,
                })?;
                zero.push(floats_like(like, &name, &[], &[0.0]).ok()?);
                name
            }
        });
    }
    node.input.truncate(if node.input[2].is_empty() { 2 } else { 3 });
    Some(Merged::Single(node, zero))
}
