//! An ncnn network in memory: layers in the order they run, and the blobs between them.

use std::collections::{BTreeMap, HashMap};

use crate::graph::NodeId;

/// One value of a layer's parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    /// An integer.
    Int(i32),
    /// A floating-point number.
    Float(f32),
    /// An array of integers.
    Ints(Vec<i32>),
    /// An array of floating-point numbers.
    Floats(Vec<f32>),
}

/// One array of weights, as it lies in the `.bin` file.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// float32 or, in a small file, float16: its type stands before it.
    Tagged(Vec<f32>),
    /// int8: its type stands before it.
    Int8(Vec<i8>),
    /// float32, with nothing before it.
    Raw(Vec<f32>),
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layer {
    /// What it computes: ncnn's name of the layer type.
    pub kind: String,
    /// Its own name.
    pub name: String,
    /// Blobs it reads.
    pub inputs: Vec<String>,
    /// Blobs it makes.
    pub outputs: Vec<String>,
    /// Parameters by their number.
    pub params: BTreeMap<u8, Param>,
    /// Weights, in the order of the file.
    pub weights: Vec<Weight>,
    /// The ONNX node it stands for.
    pub origin: Option<NodeId>,
    /// Other nodes with weights that it stands for.
    pub parts: Vec<NodeId>,
}

impl Layer {
    /// A layer without inputs and outputs.
    pub fn new(kind: &str) -> Self {
        Self { kind: kind.to_owned(), ..Self::default() }
    }

    /// With an integer parameter.
    pub fn int(mut self, id: u8, value: impl TryInto<i32>) -> Self {
        self.set(id, value);
        self
    }

    /// With a floating-point parameter.
    pub fn float(mut self, id: u8, value: f32) -> Self {
        self.params.insert(id, Param::Float(value));
        self
    }

    /// With an array of integers.
    pub fn ints(mut self, id: u8, values: impl IntoIterator<Item = i64>) -> Self {
        let values = values.into_iter().map(|v| v.clamp(i32::MIN.into(), i32::MAX.into()) as i32);
        self.params.insert(id, Param::Ints(values.collect()));
        self
    }

    /// With one more array of weights.
    pub fn weight(mut self, weight: Weight) -> Self {
        self.weights.push(weight);
        self
    }

    /// With a bias: whether there is one goes into parameter `id`.
    pub fn bias(self, id: u8, bias: Option<Vec<f32>>) -> Self {
        match bias {
            Some(bias) => self.int(id, 1).weight(Weight::Raw(bias)),
            None => self,
        }
    }

    /// Sets an integer parameter.
    pub fn set(&mut self, id: u8, value: impl TryInto<i32>) {
        self.params.insert(id, Param::Int(value.try_into().unwrap_or(i32::MAX)));
    }

    /// An integer parameter, or `default`.
    pub fn get(&self, id: u8, default: i32) -> i32 {
        match self.params.get(&id) {
            Some(Param::Int(value)) => *value,
            _ => default,
        }
    }

    /// A floating-point parameter, or `default`.
    pub fn get_float(&self, id: u8, default: f32) -> f32 {
        match self.params.get(&id) {
            Some(Param::Float(value)) => *value,
            _ => default,
        }
    }

    /// The scalar that a `BinaryOp` of type `operation` has in the place of its second input.
    pub fn scalar_operand(&self, operation: i32) -> Option<f32> {
        let fits = self.kind == "BinaryOp" && self.get(0, 0) == operation && self.get(1, 0) == 1;
        fits.then(|| self.get_float(2, 0.0))
    }

    /// Whether it computes on integers.
    pub fn on_integers(&self) -> bool {
        let id = match self.kind.as_str() {
            "Embed" | "Gemm" | "MultiHeadAttention" | "SDPA" => 18,
            "Convolution" | "ConvolutionDepthWise" | "GRU" | "InnerProduct" | "LSTM" | "RNN" => 8,
            _ => return false,
        };
        self.get(id, 0) != 0
    }

    /// Whether it is a convolution on integers, which can hand them to another one.
    pub fn convolves_integers(&self) -> bool {
        matches!(self.kind.as_str(), "Convolution" | "ConvolutionDepthWise") && self.on_integers()
    }

    /// Whether it is a `BinaryOp` of that type between two blobs.
    pub fn joins(&self, operation: i32) -> bool {
        self.kind == "BinaryOp" && self.get(0, 0) == operation && self.inputs.len() == 2
    }
}

/// A network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Net {
    /// In an order in which they can run.
    pub layers: Vec<Layer>,
    /// Dimensions of each blob, outermost first, without the batch.
    pub shapes: HashMap<String, Vec<usize>>,
    /// Graph outputs and the blobs that hold them.
    pub outputs: Vec<(String, String)>,
}

impl Net {
    /// The layers that read each blob, and how often each is an output.
    pub fn readers(&self) -> HashMap<&str, Vec<Option<usize>>> {
        let mut readers: HashMap<&str, Vec<Option<usize>>> = HashMap::new();
        for (i, layer) in self.layers.iter().enumerate() {
            for input in &layer.inputs {
                readers.entry(input).or_default().push(Some(i));
            }
        }
        for (_, blob) in &self.outputs {
            readers.entry(blob).or_default().push(None);
        }
        readers
    }

    /// The layer that makes each blob.
    pub fn producers(&self) -> HashMap<&str, usize> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(i, layer)| layer.outputs.iter().map(move |blob| (blob.as_str(), i))).collect()
    }

    /// Number of values in a blob.
    pub fn size(&self, blob: &str) -> usize {
        self.shapes.get(blob).map_or(1, |shape| shape.iter().product())
    }
}
