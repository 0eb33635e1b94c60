//! What a calibration remembers of its model, to refuse another one.
//!
//! Ranges hold for a graph that computes the same values: the same operator set, nodes and weights. Names of nodes,
//! documentation, metadata and the order of the file do not matter. Each node and each weight is remembered as two
//! CRC-32s, of its name (of the first value it makes, for a node) and of its content: enough to tell which one differs.

use std::collections::BTreeMap;

use crc32fast::Hasher;
use prost::Message;
use rayon::prelude::*;

use crate::graph::NodeExt;
use crate::mapped;
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};

/// Checksums of the operator set, nodes and weights of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    opset: i64,
    nodes: BTreeMap<u32, u32>,
    weights: BTreeMap<u32, u32>,
}

impl Fingerprint {
    /// Of a model as it is calibrated, that is prepared for quantization.
    pub fn of(model: &Model) -> Self {
        let graph = model.graph();
        let weights: Vec<_> =
            graph.initializer.par_iter().map(|t| (checksum(t.name()), weight_content(t))).collect();
        Self {
            opset: model.opset().unwrap_or(0),
            nodes: graph.node.iter().map(|n| (checksum(identity(n)), node_content(n))).collect(),
            weights: weights.into_iter().collect(),
        }
    }

    /// What `model` has that the model of this fingerprint has not, or the other way round; `None` if they are the same.
    pub fn difference(&self, model: &Model) -> Option<String> {
        let other = Self::of(model);
        if self == &other {
            return None;
        }
        let graph = model.graph();
        let node = graph.node.iter().find(|n| differs(&self.nodes, &other.nodes, checksum(identity(n))));
        let named = || graph.initializer.iter().map(TensorProto::name);
        let weight = named().find(|name| differs(&self.weights, &other.weights, checksum(name)));
        Some(match (node, weight) {
            _ if self.opset != other.opset => {
                format!("its operator set is {}, not {}", self.opset, other.opset)
            }
            (Some(node), _) => format!("it has no such node as {} '{}'", node.op_type(), node.label()),
            (_, Some(name)) => format!("its weights '{name}' are others"),
            _ => self.counts(&other),
        })
    }

    /// How two models differ whose names are not at hand.
    pub fn difference_of(&self, other: &Self) -> Option<String> {
        (self != other).then(|| self.counts(other))
    }

    fn counts(&self, other: &Self) -> String {
        let count = |ours: &BTreeMap<u32, u32>, theirs: &BTreeMap<u32, u32>| {
            let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
            keys.into_iter().filter(|key| differs(ours, theirs, **key)).count()
        };
        let (nodes, weights) = (count(&self.nodes, &other.nodes), count(&self.weights, &other.weights));
        match (nodes, weights) {
            (0, 0) => format!("operator sets {} and {}", self.opset, other.opset),
            _ => format!("{nodes} nodes and {weights} weights differ"),
        }
    }

    /// Operator set, then the nodes and the weights: their number, and for each the two checksums; little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.opset.to_le_bytes().to_vec();
        for parts in [&self.nodes, &self.weights] {
            bytes.extend((parts.len() as u64).to_le_bytes());
            parts.iter().for_each(|(name, content)| {
                bytes.extend(name.to_le_bytes());
                bytes.extend(content.to_le_bytes());
            });
        }
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, `None` if it is anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (opset, rest) = bytes.split_first_chunk()?;
        let (nodes, rest) = parts(rest)?;
        let (weights, rest) = parts(rest)?;
        rest.is_empty().then_some(Self { opset: i64::from_le_bytes(*opset), nodes, weights })
    }
}

fn parts(bytes: &[u8]) -> Option<(BTreeMap<u32, u32>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(8)?;
    let (pairs, rest) = rest.split_at_checked(length)?;
    let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
    let pairs = pairs.chunks_exact(8).map(|pair| Some((number(&pair[..4])?, number(&pair[4..])?)));
    Some((pairs.collect::<Option<_>>()?, rest))
}

fn differs(ours: &BTreeMap<u32, u32>, theirs: &BTreeMap<u32, u32>, key: u32) -> bool {
    ours.get(&key) != theirs.get(&key)
}

fn checksum(name: &str) -> u32 {
    crc32fast::hash(name.as_bytes())
}

/// A node is known by the first value it makes.
fn identity(node: &NodeProto) -> &str {
    node.output.first().map_or("", String::as_str)
}

fn node_content(node: &NodeProto) -> u32 {
    let mut hasher = Hasher::new();
    let lists = [&node.input, &node.output].map(|names| names.join("\0"));
    for text in [node.op_type(), node.domain(), &lists[0], &lists[1]] {
        add(&mut hasher, text.as_bytes());
    }
    for attribute in &node.attribute {
        add(&mut hasher, &attribute.encode_to_vec());
    }
    hasher.finalize()
}

fn weight_content(tensor: &TensorProto) -> u32 {
    let mut hasher = Hasher::new();
    // Large weights are raw: they are not copied.
    let rest = TensorProto { raw_data: None, doc_string: None, ..tensor.clone() };
    add(&mut hasher, &rest.encode_to_vec());
    hasher.update(tensor.raw_data());
    mapped::release(tensor.raw_data());
    hasher.finalize()
}

/// Adds a part in such a way that none can be mistaken for two.
fn add(hasher: &mut Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{GraphProto, ModelProto, OperatorSetIdProto};

    type Change = fn(&mut ModelProto);

    fn model(change: impl FnOnce(&mut ModelProto)) -> Model {
        let node = |op_type: &str, input: &str, output: &str| NodeProto {
            op_type: Some(op_type.to_owned()),
            input: vec![input.to_owned(), "w".to_owned()],
            output: vec![output.to_owned()],
            ..NodeProto::default()
        };
        let weight = TensorProto {
            name: Some("w".to_owned()),
            dims: vec![2],
            raw_data: Some(vec![1; 8].into()),
            ..TensorProto::default()
        };
        let graph = GraphProto {
            node: vec![node("Mul", "x", "y"), node("Add", "y", "z")],
            initializer: vec![weight],
            ..GraphProto::default()
        };
        let mut proto = ModelProto {
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            ..ModelProto::default()
        };
        change(&mut proto);
        Model::from_proto(proto).unwrap()
    }

    #[test]
    fn what_does_not_change_values_is_the_same_model() {
        let print = Fingerprint::of(&model(|_| ()));
        let changes: [Change; 3] = [
            |m| m.producer_name = Some("another".to_owned()),
            |m| m.graph.as_mut().unwrap().node[0].name = Some("first".to_owned()),
            |m| m.graph.as_mut().unwrap().node.reverse(),
        ];
        for change in changes {
            assert_eq!(print.difference(&model(change)), None);
        }
    }

    #[test]
    fn what_differs_is_named() {
        let print = Fingerprint::of(&model(|_| ()));
        let cases: [(Change, &str); 6] = [
            (|m| m.opset_import[0].version = Some(13), "operator set is 17, not 13"),
            (|m| m.graph.as_mut().unwrap().node[1].op_type = Some("Sub".to_owned()), "Sub 'z'"),
            (|m| m.graph.as_mut().unwrap().node[0].output[0] = "q".to_owned(), "Mul 'q'"),
            (|m| m.graph.as_mut().unwrap().initializer[0].raw_data = Some(vec![2; 8].into()), "weights 'w'"),
            (|m| m.graph.as_mut().unwrap().initializer[0].dims = vec![2, 1], "weights 'w'"),
            (|m| drop(m.graph.as_mut().unwrap().node.pop()), "1 nodes and 0 weights differ"),
        ];
        for (change, expected) in cases {
            let other = model(change);
            let found = print.difference(&other).unwrap();
            assert!(found.contains(expected), "{found}");
            assert!(print.difference_of(&Fingerprint::of(&other)).is_some());
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        let print = Fingerprint::of(&model(|_| ()));
        let bytes = print.to_bytes();
        assert_eq!(Fingerprint::from_bytes(&bytes), Some(print));
        for length in 0..bytes.len() {
            assert_eq!(Fingerprint::from_bytes(&bytes[..length]), None);
        }
        assert_eq!(Fingerprint::from_bytes(&[bytes, vec![0]].concat()), None);
        assert_eq!(Fingerprint::from_bytes(&[[0; 8], [0xFF; 8]].concat()), None);
    }
}
