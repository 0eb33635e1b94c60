//! Which inputs read a QuantizeLinear/DequantizeLinear pair, by what TensorRT's compiler fuses:
//!
//! | operator | pairs |
//! |---|---|
//! | Conv, ConvTranspose, Gemm, MatMul | in front of every activation; nothing behind, so that what follows is fused |
//! | Add of a convolution that nothing else reads | in front of the other operand, the skip; both the same, the second |
//! | MaxPool | in front of it instead of behind: quantizing commutes with the maximum |
//! | AveragePool, GlobalAveragePool | in front, behind a layer that is int8 |
//! | Concat, Resize in front of a pair | in front of every input, with the scale of the result |
//!
//! Some layers are quicker in float: see [`decline`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::export::layers::Layer;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::quantize::weights::weight_of;

/// Least depth and width of a matrix product that has an integer kernel worth it.
const LEAST_MATRIX: i64 = 16;

/// Least input and output channels of a convolution that is int8 without a second look.
const LEAST_CHANNELS: i64 = 16;

/// Channels that integer kernels take at a time.
const CHANNEL_STEP: i64 = 8;

/// Operators that leave a value what it is, or are fused with the layer in front of them.
const FUSED: &[&str] = &[
    "Add",
    "Clip",
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "PRelu",
    "Relu",
    "Sigmoid",
];

/// Where pairs go.
pub(super) struct Placement<'m> {
    /// Inputs, by node and position, that read their value through its pair.
    pub reads: BTreeMap<(NodeId, usize), &'m str>,
    /// For a value behind a MaxPool, the value in front of it.
    roots: HashMap<&'m str, &'m str>,
    /// For a value, another one with the same scale.
    links: HashMap<&'m str, &'m str>,
}

/// What is asked of nodes and values.
struct Finder<'g, 'm, Included, Seen> {
    graph: &'g Graph<'m>,
    included: Included,
    seen: Seen,
    paired: HashSet<&'m str>,
    /// Values whose pair is new.
    open: Vec<&'m str>,
    found: Placement<'m>,
}

impl<'m> Placement<'m> {
    /// Finds the places for `layers`; `included` tells which other nodes may take part, `seen` of which values the
    /// range is known.
    pub fn find(
        graph: &Graph<'m>,
        layers: &[&Layer<'m>],
        included: impl Fn(NodeId) -> bool,
        seen: impl Fn(&str) -> bool,
    ) -> Self {
        let found = Self { reads: BTreeMap::new(), roots: HashMap::new(), links: HashMap::new() };
        let mut finder = Finder { graph, included, seen, paired: HashSet::new(), open: Vec::new(), found };
        for layer in layers {
            for &(index, value) in &layer.inputs {
                finder.read(layer.id, index, value);
            }
        }
        let chosen: BTreeSet<NodeId> = layers.iter().map(|layer| layer.id).collect();
        for id in 0..graph.nodes().len() {
            if (finder.included)(id) {
                finder.skip(id, &chosen);
                finder.pool(id, &chosen);
            }
        }
        while let Some(value) = finder.open.pop() {
            finder.joined(value);
        }
        finder.found
    }

    /// Every value with a pair, in the order of the nodes that read them, each once.
    pub fn values(&self) -> Vec<&'m str> {
        let mut known = HashSet::new();
        self.reads.values().copied().filter(|value| known.insert(*value)).collect()
    }

    /// The value whose pair stands for that of `value`.
    pub fn root<'v>(&self, value: &'v str) -> &'v str
    where
        'm: 'v,
    {
        followed(&self.roots, value)
    }

    /// A value that stands for all that have the scale of `value`.
    pub fn group<'v>(&self, value: &'v str) -> &'v str
    where
        'm: 'v,
    {
        followed(&self.links, value)
    }

    fn link(&mut self, a: &'m str, b: &'m str) {
        let (a, b) = (self.group(a), self.group(b));
        if a != b {
            self.links.insert(a, b);
        }
    }
}

/// Where the links from `value` end.
fn followed<'v, 'm: 'v>(links: &HashMap<&'m str, &'m str>, mut value: &'v str) -> &'v str {
    while let Some(&next) = links.get(value) {
        value = next;
    }
    value
}

impl<'m, Included: Fn(NodeId) -> bool, Seen: Fn(&str) -> bool> Finder<'_, 'm, Included, Seen> {
    /// Has input `index` of node `id`, which is `value`, read a pair; returns the value that the pair is behind.
    fn read(&mut self, id: NodeId, index: usize, value: &'m str) -> Option<&'m str> {
        if let Some((pool, input)) = self.max_pool(value) {
            self.found.roots.insert(value, input);
            return self.read(pool, 0, input);
        }
        if !(self.seen)(value) {
            return None;
        }
        self.found.reads.insert((id, index), value);
        if self.paired.insert(value) {
            self.open.push(value);
        }
        Some(value)
    }

    /// The MaxPool that makes `value`, and what it reads.
    fn max_pool(&self, value: &str) -> Option<(NodeId, &'m str)> {
        let id = self.graph.producer(value)?;
        let node = self.graph.node(id);
        let input = node.input_at(0)?;
        let commutes =
            node.is("MaxPool") && node.output.len() == 1 && self.graph.initializer(input).is_none();
        (commutes && (self.included)(id) && (self.seen)(input)).then_some((id, input))
    }

    /// An Add that is fused with the convolution behind which it is: its other operand.
    fn skip(&mut self, id: NodeId, chosen: &BTreeSet<NodeId>) {
        let node = self.graph.node(id);
        let [a, b] = node.input.as_slice() else { return };
        if !node.is("Add") || [a, b].iter().any(|value| self.graph.initializer(value).is_some()) {
            return;
        }
        let fused = |value: &str| {
            let producer = self.graph.producer(value).filter(|id| chosen.contains(id));
            let convolution =
                |id: NodeId| ["Conv", "ConvTranspose"].iter().any(|op| self.graph.node(id).is(op));
            producer.is_some_and(convolution) && self.graph.sole_consumer(value) == Some(id)
        };
        match (fused(a), fused(b)) {
            (true, _) => self.read(id, 1, b),
            (false, true) => self.read(id, 0, a),
            (false, false) => None,
        };
    }

    /// A pool whose input comes from a layer, with nothing but what is fused in between.
    fn pool(&mut self, id: NodeId, chosen: &BTreeSet<NodeId>) {
        let node = self.graph.node(id);
        let Some(input) = node.input_at(0) else { return };
        if (node.is("AveragePool") || node.is("GlobalAveragePool")) && self.comes_from(input, chosen) {
            self.read(id, 0, input);
        }
    }

    fn comes_from(&self, value: &'m str, chosen: &BTreeSet<NodeId>) -> bool {
        let (mut open, mut met) = (vec![value], BTreeSet::new());
        while let Some(value) = open.pop() {
            let Some(id) = self.graph.producer(value).filter(|id| met.insert(*id)) else { continue };
            if chosen.contains(&id) {
                return true;
            }
            let node = self.graph.node(id);
            if FUSED.iter().any(|op_type| node.is(op_type)) {
                open.extend(node.input.iter().map(String::as_str));
            }
        }
        false
    }

    /// A value with a pair that is put together or resampled: the same scale in front.
    fn joined(&mut self, value: &'m str) {
        let Some(id) = self.graph.producer(value).filter(|id| (self.included)(*id)) else { return };
        let node = self.graph.node(id);
        let inputs = match node.op_type() {
            "Concat" => node.input.as_slice(),
            "Resize" | "Upsample" => &node.input[..node.input.len().min(1)],
            _ => return,
        };
        if inputs.iter().any(|input| self.graph.initializer(input).is_some()) {
            return;
        }
        for (index, input) in inputs.iter().enumerate() {
            if let Some(behind) = self.read(id, index, input) {
                self.found.link(behind, value);
            }
        }
    }
}

/// Why a layer is quicker in float, if it is.
pub(super) fn decline(graph: &Graph, layer: &Layer, elements: impl Fn(&str) -> f64) -> Option<String> {
    let node = graph.node(layer.id);
    let weights = weight_of(graph, layer.id).ok().filter(|_| layer.has_weights())?;
    match (node.op_type(), weights.dims.as_slice()) {
        ("Conv", &[out, depth, ref kernel @ ..]) => {
            let reads_input = graph.is_input(layer.inputs[0].1);
            let taken = convolution_is_taken(out, depth, kernel, node.int("group", 1), reads_input);
            (!taken).then(|| format!("TensorRT has no quick int8 kernel for {depth} to {out} channels"))
        }
        ("Gemm" | "MatMul", &[a, b]) => {
            let (depth, columns) = if node.int("transB", 0) == 1 { (b, a) } else { (a, b) };
            let value = layer.inputs[0].1;
            if depth < LEAST_MATRIX || columns < LEAST_MATRIX {
                return Some(format!("TensorRT has no quick int8 kernel for a {depth} × {columns} matrix"));
            }
            let fixed = || graph.dimensions(value)?.into_iter().try_fold(1, |n: usize, d| n.checked_mul(d?));
            let rows = fixed().map_or_else(|| elements(value), |n| n as f64) / depth as f64;
            (rows == 1.0)
                .then(|| "a product with one row is a matter of memory, not of arithmetic".to_owned())
        }
        _ => None,
    }
}

/// Whether a convolution of `depth` input channels per group has a quick int8 kernel.
fn convolution_is_taken(out: i64, depth: i64, kernel: &[i64], group: i64, reads_input: bool) -> bool {
    let many = |channels: i64| channels >= LEAST_CHANNELS;
    let whole = |channels: i64| channels % CHANNEL_STEP == 0;
    if many(out) && many(depth) {
        return true;
    }
    if group > 1 {
        return whole(out) && kernel.iter().all(|&k| k >= 3);
    }
    let square = kernel.windows(2).all(|pair| pair[0] == pair[1]);
    (whole(out) || whole(depth)) && square && (reads_input || many(out) || many(depth))
}
