//! What a graph says of each of its values, found by name once.
//!
//! Names become numbers when a graph is indexed: a million nodes then cost one look-up for each name that they mention, and a
//! walk over all of them, as the [check](super::check) is, costs none.

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::{NodeId, capture, subgraphs};
use crate::onnx::{GraphProto, TensorProto, ValueInfoProto};

/// Number of a value.
pub(super) type ValueId = usize;

/// One value.
#[derive(Debug, Default)]
pub(super) struct Value<'m> {
    /// The node that makes it; the last one if there are several.
    pub producer: Option<NodeId>,
    pub initializer: Option<&'m TensorProto>,
    /// What is said of its type: of an output, of an input, or of a value in between.
    pub described: Option<&'m ValueInfoProto>,
    pub is_input: bool,
    pub is_output: bool,
    /// Whether a body of an `If`, `Loop` or `Scan` reads it.
    pub is_captured: bool,
    /// Where its readers are among those of all values.
    first: usize,
    readers: usize,
}

impl Value<'_> {
    /// Whether it is seen from outside the node list.
    pub fn is_observable(&self) -> bool {
        self.is_output || self.is_captured
    }
}

/// All values of a graph.
#[derive(Debug, Default)]
pub(super) struct Values<'m> {
    ids: HashMap<&'m str, ValueId>,
    all: Vec<Value<'m>>,
    /// The nodes that read each value, once for each input that does; those of one value stand together.
    readers: Vec<NodeId>,
    /// What the nodes read and make, in the order of the file; without what is left out.
    read: Vec<ValueId>,
    made: Vec<ValueId>,
}

impl<'m> Values<'m> {
    pub fn of(graph: &'m GraphProto) -> Self {
        let (nodes, constants) = (graph.node.len(), graph.initializer.len());
        let mut values = Self {
            ids: HashMap::with_capacity(nodes + constants),
            all: Vec::with_capacity(nodes + constants),
            ..Self::default()
        };
        let mut captured = HashSet::new();
        for (id, node) in graph.node.iter().enumerate() {
            for input in node.input.iter().filter(|name| !name.is_empty()) {
                let value = values.id(input);
                values.all[value].readers += 1;
                values.read.push(value);
            }
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                let value = values.id(output);
                values.all[value].producer = Some(id);
                values.made.push(value);
            }
            for body in node.attribute.iter().flat_map(subgraphs) {
                capture(body, &mut captured);
            }
        }
        captured.into_iter().for_each(|name| values.of_name(name).is_captured = true);
        for tensor in &graph.initializer {
            values.of_name(tensor.name()).initializer = Some(tensor);
        }
        for value in &graph.value_info {
            values.of_name(value.name()).described = Some(value);
        }
        for input in &graph.input {
            let value = values.of_name(input.name());
            (value.is_input, value.described) = (true, Some(input));
        }
        for output in &graph.output {
            let value = values.of_name(output.name());
            (value.is_output, value.described) = (true, Some(output));
        }
        values.list_readers(graph);
        values
    }

    fn list_readers(&mut self, graph: &GraphProto) {
        let mut end = 0;
        for value in &mut self.all {
            value.first = end;
            end += std::mem::take(&mut value.readers);
        }
        self.readers = vec![0; end];
        let mut read = self.read.iter();
        for (id, node) in graph.node.iter().enumerate() {
            let count = node.input.iter().filter(|name| !name.is_empty()).count();
            for &value in read.by_ref().take(count) {
                let value = &mut self.all[value];
                self.readers[value.first + value.readers] = id;
                value.readers += 1;
            }
        }
    }

    fn id(&mut self, name: &'m str) -> ValueId {
        let next = self.all.len();
        let id = *self.ids.entry(name).or_insert(next);
        if id == next {
            self.all.push(Value::default());
        }
        id
    }

    fn of_name(&mut self, name: &'m str) -> &mut Value<'m> {
        let id = self.id(name);
        &mut self.all[id]
    }

    /// What is known of the value of this name.
    pub fn get(&self, name: &str) -> Option<&Value<'m>> {
        self.ids.get(name).map(|&id| &self.all[id])
    }

    /// What is known of a value.
    pub fn at(&self, id: ValueId) -> &Value<'m> {
        &self.all[id]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The nodes that read a value, once for each input that does.
    pub fn readers(&self, value: &Value) -> &[NodeId] {
        &self.readers[value.first..][..value.readers]
    }

    /// The values that the nodes read, node by node; without those that are left out.
    pub fn read(&self) -> impl Iterator<Item = ValueId> {
        self.read.iter().copied()
    }

    /// The values that the nodes make, node by node; without those that are left out.
    pub fn made(&self) -> impl Iterator<Item = ValueId> {
        self.made.iter().copied()
    }
}
