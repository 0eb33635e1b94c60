//! What is there twice: equal nodes with equal inputs, and equal constants.
//!
//! Two nodes compute the same when operator, attributes and inputs are equal and the operator is a function of them. In
//! one walk in the order of the file, each node is looked up under its operator, attributes and inputs, where an input is
//! called by the first of the values that equal it; so equal chains collapse in the same walk.
//!
//! Equal constants count as the same input even before they are merged. They are merged last, because the folds rewrite
//! weights in place where only one node reads them.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use foldhash::{HashMap, HashMapExt};

use prost::Message;
use rayon::prelude::*;

use super::Changes;
use crate::error::Result;
use crate::graph::{Graph, NodeId, subgraphs};
use crate::mapped;
use crate::model::is_default_domain;
use crate::onnx::{NodeProto, TensorProto};

/// Operators that do not return the same twice, and those whose constants are not worth comparing.
const NOT_FUNCTIONS: &[&str] = &[
    "Bernoulli",
    "Constant",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

/// The domain of ONNX Runtime, and the functions in it that tools write.
const MICROSOFT: &str = "com.microsoft";
const MICROSOFT_FUNCTIONS: &[&str] = &["QuantizeLinear", "DequantizeLinear"];

/// What a node computes.
#[derive(PartialEq, Eq, Hash)]
struct Expression<'m> {
    op_type: &'m str,
    domain: &'m str,
    attributes: Vec<Vec<u8>>,
    inputs: Vec<&'m str>,
    outputs: Vec<bool>,
}

/// The pass over nodes.
pub(super) fn nodes(graph: &Graph) -> Result<Changes> {
    let mut same = equal_constants(graph);
    // Under a digest of its expression: nodes with another expression and the same digest are left alone.
    let mut seen: HashMap<u64, NodeId> = HashMap::with_capacity(graph.nodes().len());
    let digests = FixedState::default();
    let mut changes = Changes::default();
    // The outputs of the nodes that were renamed after one of their duplicates.
    let mut renamed: HashMap<NodeId, Vec<String>> = HashMap::new();
    for (id, node) in graph.nodes().iter().enumerate() {
        let Some(expression) = expression(node, &same) else { continue };
        let kept = *seen.entry(digests.hash_one(&expression)).or_insert(id);
        if kept == id || self::expression(graph.node(kept), &same).as_ref() != Some(&expression) {
            continue;
        }
        let names = renamed.get(&kept).unwrap_or(&graph.node(kept).output);
        let Some(names) = names_for_both(graph, names, &node.output) else { continue };
        let originals = &graph.node(kept).output;
        for (original, (name, output)) in originals.iter().zip(names.iter().zip(&node.output)) {
            same.insert(output, original);
            for old in [original, output].into_iter().filter(|&old| old != name && !old.is_empty()) {
                changes.patch.shunt(old, name);
            }
        }
        renamed.insert(kept, names);
        changes.patch.remove(id);
        changes.gone.push(id);
    }
    for (id, output) in renamed {
        if output != graph.node(id).output {
            changes.patch.replace(id, vec![NodeProto { output, ..graph.node(id).clone() }]);
        }
    }
    Ok(changes)
}

/// Names under which the outputs of two equal nodes are known from outside; `None` when one goes by two names.
fn names_for_both(graph: &Graph, kept: &[String], other: &[String]) -> Option<Vec<String>> {
    let name =
        |(kept, other): (&String, &String)| match (graph.is_observable(kept), graph.is_observable(other)) {
            (true, true) => None,
            (false, true) => Some(other.clone()),
            (_, false) => Some(kept.clone()),
        };
    kept.iter().zip(other).map(name).collect()
}

fn expression<'m>(node: &'m NodeProto, same: &HashMap<&'m str, &'m str>) -> Option<Expression<'m>> {
    let known = if is_default_domain(node.domain()) {
        !NOT_FUNCTIONS.contains(&node.op_type())
    } else {
        node.domain() == MICROSOFT && MICROSOFT_FUNCTIONS.contains(&node.op_type())
    };
    let plain = |a: &crate::onnx::AttributeProto| a.t.is_none() && subgraphs(a).next().is_none();
    if !known || !node.attribute.iter().all(plain) || !node.device_configurations.is_empty() {
        return None;
    }
    let mut attributes: Vec<_> = node.attribute.iter().map(Message::encode_to_vec).collect();
    attributes.sort_unstable();
    Some(Expression {
        op_type: node.op_type(),
        domain: if is_default_domain(node.domain()) { "" } else { node.domain() },
        attributes,
        inputs: node.input.iter().map(|i| same.get(i.as_str()).copied().unwrap_or(i)).collect(),
        outputs: node.output.iter().map(String::is_empty).collect(),
    })
}

/// The pass over constants.
pub(super) fn constants(graph: &Graph) -> Result<Changes> {
    let mut changes = Changes::default();
    for (duplicate, kept) in equal_constants(graph) {
        if !graph.is_observable(duplicate) {
            changes.patch.shunt(duplicate, kept);
        }
    }
    Ok(changes)
}

/// What to compare of a constant before all of its data: type, dimensions, whether the data is in bytes, its length, and how it
/// begins.
type Shape<'m> = (i32, &'m [i64], (bool, usize), &'m [u8]);

/// How many of the first bytes tell most constants apart.
const BEGINNING: usize = 64;

/// Each constant that equals an earlier one, and the first of those.
///
/// Only constants that share type, dimensions, size and beginning with another are read whole. Different ones with the same
/// checksum are left alone, so that no file can make this slow.
fn equal_constants<'m>(graph: &Graph<'m>) -> HashMap<&'m str, &'m str> {
    let size = |t: &TensorProto| match raw(t) {
        Some(raw) => (true, raw.len()),
        None => (false, data(t).map(<[u8]>::len).sum()),
    };
    let mut alike: HashMap<Shape, Vec<&TensorProto>> = HashMap::new();
    for tensor in graph.constants() {
        let data = raw(tensor).unwrap_or_default();
        let beginning = &data[..data.len().min(BEGINNING)];
        alike.entry((tensor.data_type(), &tensor.dims, size(tensor), beginning)).or_default().push(tensor);
    }
    let groups: Vec<_> = alike.into_values().filter(|group| group.len() > 1).collect();
    let same = groups.into_par_iter().flat_map_iter(|group| {
        let sums: Vec<u32> = group.par_iter().map(|tensor| checksum(tensor)).collect();
        let mut first: HashMap<u32, &TensorProto> = HashMap::new();
        let mut same = Vec::new();
        for (tensor, sum) in group.into_iter().zip(sums) {
            let kept = *first.entry(sum).or_insert(tensor);
            if kept.name() != tensor.name() && data(kept).eq(data(tensor)) {
                same.push((tensor.name(), kept.name()));
            }
            tensor.raw_data.iter().for_each(|data| mapped::release(data));
        }
        same
    });
    same.collect()
}

fn raw(tensor: &TensorProto) -> Option<&[u8]> {
    tensor.raw_data.as_deref().filter(|raw| !raw.is_empty())
}

fn checksum(tensor: &TensorProto) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    data(tensor).for_each(|piece| sum.update(piece));
    sum.finalize()
}

/// The data, wherever the tensor has them: bytes, numbers of each type, and each text.
fn data(tensor: &TensorProto) -> impl Iterator<Item = &[u8]> {
    let numbers: [&[u8]; 6] = [
        tensor.raw_data.as_deref().unwrap_or_default(),
        bytemuck::cast_slice(&tensor.float_data),
        bytemuck::cast_slice(&tensor.double_data),
        bytemuck::cast_slice(&tensor.int32_data),
        bytemuck::cast_slice(&tensor.int64_data),
        bytemuck::cast_slice(&tensor.uint64_data),
    ];
    numbers.into_iter().chain(tensor.string_data.iter().map(|text| &text[..]))
}
