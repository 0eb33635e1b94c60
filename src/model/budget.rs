//! A bound on the memory that the messages of a file take, before it is decoded.
//!
//! An empty message takes two bytes of a file and hundreds in memory, so that a small file can ask for more than there is. Real
//! ones have names and values: even where each name is one letter, as in the smallest node, the messages of a
//! model take less than [`FACTOR`] times its file. Only their headers are read here, and none of the weights.

use bytes::Buf;
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::onnx;

/// How many times as much memory as a file its messages may take, beyond [`FREE`].
const FACTOR: usize = 32;

/// What the messages of any file may take.
const FREE: usize = 1 << 24;

/// What a message takes in memory, and which of its fields hold messages.
struct Kind {
    name: &'static str,
    size: usize,
    fields: &'static [(u32, &'static Kind)],
}

macro_rules! kinds {
    ($($kind:ident = $name:ident { $($tag:literal: $inner:ident),* $(,)? })*) => { $(
        static $kind: Kind =
            Kind { name: stringify!($name), size: size_of::<onnx::$name>(), fields: &[$(($tag, &$inner)),*] };
    )* };
}

kinds! {
    MODEL = ModelProto { 7: GRAPH, 8: OPERATOR_SET, 14: ENTRY, 20: TRAINING, 25: FUNCTION, 26: DEVICES }
    GRAPH = GraphProto {
        1: NODE, 5: TENSOR, 11: VALUE, 12: VALUE, 13: VALUE, 14: ANNOTATION, 15: SPARSE_TENSOR, 16: ENTRY
    }
    NODE = NodeProto { 5: ATTRIBUTE, 9: ENTRY, 10: NODE_DEVICES }
    ATTRIBUTE = AttributeProto {
        5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 14: TYPE, 15: TYPE, 22: SPARSE_TENSOR, 23: SPARSE_TENSOR
    }
    TENSOR = TensorProto { 3: SEGMENT, 13: ENTRY, 16: ENTRY }
    SEGMENT = TensorSegment {}
    SPARSE_TENSOR = SparseTensorProto { 1: TENSOR, 2: TENSOR }
    VALUE = ValueInfoProto { 2: TYPE, 4: ENTRY }
    TYPE = TypeProto {
        1: TENSOR_TYPE, 4: SEQUENCE_TYPE, 5: MAP_TYPE, 7: OPAQUE_TYPE, 8: SPARSE_TENSOR_TYPE, 9: OPTIONAL_TYPE
    }
    TENSOR_TYPE = TypeTensor { 2: SHAPE }
    SEQUENCE_TYPE = TypeSequence { 1: TYPE }
    MAP_TYPE = TypeMap { 2: TYPE }
    OPAQUE_TYPE = TypeOpaque {}
    SPARSE_TENSOR_TYPE = TypeSparseTensor { 2: SHAPE }
    OPTIONAL_TYPE = TypeOptional { 1: TYPE }
    SHAPE = TensorShapeProto { 1: DIMENSION }
    DIMENSION = TensorShapeDimension {}
    ANNOTATION = TensorAnnotation { 2: ENTRY }
    ENTRY = StringStringEntryProto {}
    OPERATOR_SET = OperatorSetIdProto {}
    FUNCTION = FunctionProto { 7: NODE, 9: OPERATOR_SET, 11: ATTRIBUTE, 12: VALUE, 14: ENTRY }
    TRAINING = TrainingInfoProto { 1: GRAPH, 2: GRAPH, 3: ENTRY, 4: ENTRY }
    DEVICES = DeviceConfigurationProto {}
    NODE_DEVICES = NodeDeviceConfigurationProto { 2: SHARDING }
    SHARDING = ShardingSpecProto { 3: DEVICE_GROUP, 4: SHARDED_DIMENSION }
    DEVICE_GROUP = IntIntListEntryProto {}
    SHARDED_DIMENSION = ShardedDimProto { 2: SIMPLE_SHARDING }
    SIMPLE_SHARDING = SimpleShardedDimProto {}
}

/// Why a model of these bytes is not decoded, if its messages would take more memory than those of any real one. What is no
/// model at all is left to the decoder.
pub(super) fn excess(content: &[u8]) -> Option<String> {
    let mut left = content.len().saturating_mul(FACTOR).saturating_add(FREE);
    match weigh(content, &MODEL, DEPTH, &mut left) {
        Err(Stop::Beyond { name, place }) => Some(format!(
            "its messages take more than {FACTOR} times the memory of the file, with the {name} at byte {}",
            place as usize - content.as_ptr() as usize
        )),
        Err(Stop::Malformed) | Ok(()) => None,
    }
}

/// How deep messages may lie in each other: as deep as the decoder goes.
const DEPTH: u32 = 100;

/// Why nothing behind it is looked at.
enum Stop {
    /// It is no message.
    Malformed,
    /// This message is too much.
    Beyond { name: &'static str, place: *const u8 },
}

impl From<DecodeError> for Stop {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// Takes what the messages in a message will need from what is `left`.
fn weigh(mut content: &[u8], kind: &Kind, depth: u32, left: &mut usize) -> Result<(), Stop> {
    let depth = depth.checked_sub(1).ok_or(Stop::Malformed)?;
    while content.has_remaining() {
        let (tag, wire) = decode_key(&mut content)?;
        let field = kind.fields.iter().find(|(known, _)| *known == tag && wire == WireType::LengthDelimited);
        let Some((_, inner)) = field else {
            skip_field(wire, tag, &mut content, DecodeContext::default())?;
            continue;
        };
        let length = usize::try_from(decode_varint(&mut content)?).map_err(|_| Stop::Malformed)?;
        let message = content.split_off(..length).ok_or(Stop::Malformed)?;
        let beyond = Stop::Beyond { name: inner.name, place: message.as_ptr() };
        *left = left.checked_sub(inner.size).ok_or(beyond)?;
        weigh(message, inner, depth, left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// The kinds that can be reached.
    fn all(kind: &'static Kind, found: &mut Vec<&'static Kind>) {
        if !found.iter().any(|known| known.name == kind.name) {
            found.push(kind);
            kind.fields.iter().for_each(|(_, inner)| all(inner, found));
        }
    }

    #[test]
    fn every_message_of_the_schema_counts() {
        let mut kinds = Vec::new();
        all(&MODEL, &mut kinds);
        let (mut owner, mut tag) = ("", None);
        let mut declared = Vec::new();
        for line in include_str!("../onnx.rs").lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("pub struct ") {
                owner = rest.trim_end_matches(" {");
            } else if let Some(rest) = line.strip_prefix("#[prost(message") {
                tag = rest.split('"').nth(1).and_then(|tag| tag.parse::<u32>().ok());
            } else if let Some(tag) = tag.take() {
                let held = line.rsplit(['<', ' ']).next().unwrap_or_default().trim_end_matches(['>', ',']);
                declared.push((owner, tag, held));
            }
        }
        let mut listed: Vec<_> = kinds
            .iter()
            .flat_map(|kind| kind.fields.iter().map(|(tag, inner)| (kind.name, *tag, inner.name)))
            .collect();
        declared.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, declared);
    }

    #[test]
    fn empty_messages_are_too_much_and_named_ones_are_not() {
        let node = |name: &str| onnx::NodeProto {
            op_type: (!name.is_empty()).then(|| "Relu".to_owned()),
            input: (!name.is_empty()).then(|| name.to_owned()).into_iter().collect(),
            output: (!name.is_empty()).then(|| name.to_owned()).into_iter().collect(),
            ..Default::default()
        };
        let model = |name: &str| {
            let graph = onnx::GraphProto { node: vec![node(name); 200_000], ..Default::default() };
            onnx::ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec()
        };
        let reason = excess(&model("")).unwrap();
        assert!(reason.contains("the NodeProto at byte "), "{reason}");
        assert_eq!(excess(&model("a")), None);
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        for content in [&b"\x3a\xff"[..], &[0x3a; 300], b"\xff", b""] {
            assert_eq!(excess(content), None);
        }
    }
}
