//! What takes several layers in ONNX and one in ncnn.
//!
//! | found | becomes |
//! |---|---|
//! | reshape of a reshape | the second one |
//! | x · sigmoid(x), x · hard-sigmoid(x) | `Swish`, `HardSwish` |
//! | x · ½ · (1 + erf(x / √2)) | `GELU` |
//! | (x − mean) / √(mean((x − mean)²) + ε) · γ + β | `LayerNorm` |
//! | inner product, then + a constant vector | its bias |
//! | projections, softmax(s · Q · Kᵀ) · V by heads, projection | [`MultiHeadAttention`](attention) |
//! | convolution or inner product, then an activation | its parameters 9 and 10 |
//!
//! A layer is taken into another only if nothing else reads what lies between.

mod attention;

use std::collections::{BTreeSet, HashMap};

use super::codes::{ADD, DIV, MEAN, MUL, SQRT, SQUARE, SUB};
use super::lower::is;
use super::net::{Layer, Net, Param, Weight};

/// A layer in the place of others.
struct Fusion {
    /// Stands where the last of the others stood.
    layer: Layer,
    /// The layers that are gone.
    gone: Vec<usize>,
}

type Rule = fn(&View, usize) -> Option<Fusion>;

/// In this order: later rules see what earlier ones made.
const RULES: &[Rule] = &[reshapes, gated, gelu, layer_norm, bias, attention::attention, activation];

/// Fuses what can be fused.
pub(super) fn fuse(net: &mut Net) {
    for rule in RULES {
        while pass(net, *rule) {}
    }
    drop_unread(net);
}

/// Asks one rule about every layer; whether anything changed.
fn pass(net: &mut Net, rule: Rule) -> bool {
    let mut gone = BTreeSet::new();
    let mut replaced: Vec<(usize, Layer)> = Vec::new();
    let view = View::of(net);
    for at in 0..net.layers.len() {
        let Some(fusion) = rule(&view, at) else { continue };
        if fusion.gone.iter().any(|i| gone.contains(i))
            || replaced.iter().any(|(i, _)| fusion.gone.contains(i))
        {
            continue;
        }
        gone.extend(fusion.gone.iter().copied().filter(|&i| i != at));
        replaced.push((at, fusion.layer));
    }
    let changed = !replaced.is_empty();
    for (at, layer) in replaced {
        net.layers[at] = layer;
    }
    let mut at = 0;
    net.layers.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
    changed
}

/// Drops constants that were taken into layers.
fn drop_unread(net: &mut Net) {
    let read: BTreeSet<String> = net.readers().into_keys().map(str::to_owned).collect();
    net.layers
        .retain(|layer| layer.kind != "MemoryData" || layer.outputs.iter().any(|blob| read.contains(blob)));
}

/// The network with who makes and reads each blob.
struct View<'n> {
    net: &'n Net,
    producers: HashMap<&'n str, usize>,
    readers: HashMap<&'n str, Vec<Option<usize>>>,
}

impl<'n> View<'n> {
    fn of(net: &'n Net) -> Self {
        Self { net, producers: net.producers(), readers: net.readers() }
    }

    fn layer(&self, at: usize) -> &'n Layer {
        &self.net.layers[at]
    }

    /// The layer that makes input `index` of layer `at`.
    fn before(&self, at: usize, index: usize) -> Option<(usize, &'n Layer)> {
        let producer = *self.producers.get(self.layer(at).inputs.get(index)?.as_str())?;
        Some((producer, self.layer(producer)))
    }

    /// As [`before`](Self::before), if the layers `readers` are the only ones that read it, and all read it.
    fn only_before(&self, at: usize, index: usize, readers: &[usize]) -> Option<(usize, &'n Layer)> {
        let (producer, layer) = self.before(at, index)?;
        let [blob] = layer.outputs.as_slice() else { return None };
        let all = &self.readers[blob.as_str()];
        let same = all.len() == readers.len() && readers.iter().all(|reader| all.contains(&Some(*reader)));
        same.then_some((producer, layer))
    }

    /// The index of the input of `at` that comes from the layer `producer`.
    fn index_of(&self, at: usize, producer: usize) -> Option<usize> {
        (0..self.layer(at).inputs.len()).find(|&i| self.before(at, i).is_some_and(|(p, _)| p == producer))
    }

    /// The values of input `index` of layer `at`, if they are a constant along the innermost axis.
    fn vector(&self, at: usize, index: usize) -> Option<&'n [f32]> {
        let (_, layer) = self.before(at, index)?;
        let shape = self.net.shapes.get(&layer.outputs[0])?;
        match (layer.kind.as_str(), layer.weights.as_slice()) {
            ("MemoryData", [Weight::Raw(values)]) if shape.last() == Some(&values.len()) => Some(values),
            _ => None,
        }
    }
}

/// `layer` with the inputs of `first` and the outputs of `last`, in the name of `named`.
fn between(layer: Layer, input: &str, last: &Layer) -> Layer {
    Layer {
        name: last.name.clone(),
        inputs: vec![input.to_owned()],
        outputs: last.outputs.clone(),
        origin: last.origin,
        ..layer
    }
}

fn reshapes(view: &View, at: usize) -> Option<Fusion> {
    let layer = view.layer(at);
    if layer.kind != "Reshape" {
        return None;
    }
    let (before, first) = view.only_before(at, 0, &[at]).filter(|(_, first)| first.kind == "Reshape")?;
    let layer = Layer { inputs: first.inputs.clone(), ..layer.clone() };
    Some(Fusion { layer, gone: vec![before] })
}

fn gated(view: &View, at: usize) -> Option<Fusion> {
    let product = view.layer(at);
    if !product.joins(MUL) {
        return None;
    }
    (0..2).find_map(|index| {
        let (before, gate) = view.only_before(at, index, &[at])?;
        let x = &product.inputs[1 - index];
        let layer = match gate.kind.as_str() {
            "Sigmoid" => Layer::new("Swish"),
            "HardSigmoid" => Layer { params: gate.params.clone(), ..Layer::new("HardSwish") },
            _ => return None,
        };
        (gate.inputs[0] == *x).then(|| Fusion { layer: between(layer, x, product), gone: vec![before] })
    })
}

/// The constant 1 / √2, as exporters round it.
const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Finds erf, then what is around it; the ½ may stand before, between or behind the products.
fn gelu(view: &View, at: usize) -> Option<Fusion> {
    let last = view.layer(at);
    let half =
        |layer: &Layer| layer.scalar_operand(MUL) == Some(0.5) || layer.scalar_operand(DIV) == Some(2.0);
    let (product_at, outside) = if half(last) {
        let (product, _) = view.only_before(at, 0, &[at])?;
        (product, vec![product])
    } else {
        (at, Vec::new())
    };
    let product = view.layer(product_at);
    if !product.joins(MUL) {
        return None;
    }
    (0..2).find_map(|index| {
        let (plus, add) = view.only_before(product_at, index, &[product_at])?;
        let (erf_at, erf) = view.only_before(plus, 0, &[plus]).filter(|(_, l)| l.kind == "Erf")?;
        let (scaled_at, scaled) = view.only_before(erf_at, 0, &[erf_at])?;
        let down = is(scaled.params.get(&2), SQRT_HALF) && scaled.scalar_operand(MUL).is_some()
            || is(scaled.params.get(&2), SQRT_HALF.recip()) && scaled.scalar_operand(DIV).is_some();
        if add.scalar_operand(ADD) != Some(1.0) || !down || erf.inputs.len() != 1 {
            return None;
        }
        let mut gone = outside.clone();
        gone.extend([plus, erf_at, scaled_at]);
        let x = &scaled.inputs[0];
        if !outside.is_empty() {
            let direct = product.inputs[1 - index] == *x;
            return direct.then(|| Fusion { layer: between(Layer::new("GELU"), x, last), gone });
        }
        let (halved_at, halved) = view.only_before(product_at, 1 - index, &[product_at])?;
        gone.push(halved_at);
        (half(halved) && halved.inputs[0] == *x)
            .then(|| Fusion { layer: between(Layer::new("GELU"), x, last), gone })
    })
}

/// Finds the last addition, then walks back.
fn layer_norm(view: &View, at: usize) -> Option<Fusion> {
    let last = view.layer(at);
    if !last.joins(ADD) {
        return None;
    }
    let (beta, scaled) = either(|i| Some((view.vector(at, i)?, view.only_before(at, 1 - i, &[at])?)))?;
    if !scaled.1.joins(MUL) {
        return None;
    }
    let (gamma, quotient) =
        either(|i| Some((view.vector(scaled.0, i)?, view.only_before(scaled.0, 1 - i, &[scaled.0])?)))?;
    let (root, _) = view.only_before(quotient.0, 1, &[quotient.0]).filter(|_| quotient.1.joins(DIV))?;
    let (plus, add) = view.only_before(root, 0, &[root]).filter(|_| is_unary(view.layer(root), SQRT))?;
    let epsilon = add.scalar_operand(ADD)?;
    let (variance, _) = view.only_before(plus, 0, &[plus]).filter(|(_, l)| is_mean(view, l))?;
    let (square, _) = view.only_before(variance, 0, &[variance]).filter(|(_, l)| is_unary(l, SQUARE))?;
    let (difference, sub) =
        view.only_before(square, 0, &[square, quotient.0]).filter(|(_, l)| l.joins(SUB))?;
    view.index_of(quotient.0, difference).filter(|&i| i == 0)?;
    let (mean, of) = view.only_before(difference, 1, &[difference]).filter(|(_, l)| is_mean(view, l))?;
    if of.inputs != sub.inputs[..1] || gamma.len() != beta.len() {
        return None;
    }
    let layer = Layer::new("LayerNorm").int(0, gamma.len()).float(1, epsilon).int(2, 1);
    let layer = layer.weight(Weight::Raw(gamma.to_vec())).weight(Weight::Raw(beta.to_vec()));
    let gone = vec![scaled.0, quotient.0, root, plus, variance, square, difference, mean];
    Some(Fusion { layer: between(layer, &sub.inputs[0], last), gone })
}

fn either<T>(ask: impl Fn(usize) -> Option<T>) -> Option<T> {
    ask(0).or_else(|| ask(1))
}

fn is_unary(layer: &Layer, operation: i32) -> bool {
    layer.kind == "UnaryOp" && layer.get(0, 0) == operation
}

/// Whether it is a mean over the innermost axis that keeps the axis.
fn is_mean(view: &View, layer: &Layer) -> bool {
    let innermost = view.net.shapes.get(&layer.inputs[0]).map_or(0, |shape| shape.len() as i32 - 1);
    layer.kind == "Reduction"
        && (layer.get(0, 0), layer.get(4, 0)) == (MEAN, 1)
        && layer.params.get(&3) == Some(&Param::Ints(vec![innermost]))
}

fn bias(view: &View, at: usize) -> Option<Fusion> {
    let sum = view.layer(at);
    if !sum.joins(ADD) {
        return None;
    }
    let (bias, (before, product)) =
        either(|i| Some((view.vector(at, i)?, view.only_before(at, 1 - i, &[at])?)))?;
    if product.kind != "InnerProduct" || product.get(1, 0) != 0 || product.get(0, 0) as usize != bias.len() {
        return None;
    }
    let layer = Layer { outputs: sum.outputs.clone(), ..product.clone() };
    Some(Fusion { layer: layer.bias(1, Some(bias.to_vec())), gone: vec![before] })
}

/// Layers that can apply an activation to their results.
const ACTIVATED: &[&str] = &[
    "Convolution",
    "Convolution1D",
    "ConvolutionDepthWise",
    "ConvolutionDepthWise1D",
    "Deconvolution",
    "DeconvolutionDepthWise",
    "InnerProduct",
];

fn activation(view: &View, at: usize) -> Option<Fusion> {
    let layer = view.layer(at);
    let float = |id: u8, default: f32| layer.get_float(id, default);
    let (kind, params) = match layer.kind.as_str() {
        "ReLU" if float(0, 0.0) == 0.0 => (1, Vec::new()),
        "ReLU" => (2, vec![float(0, 0.0)]),
        "Clip" => (3, vec![float(0, f32::MIN), float(1, f32::MAX)]),
        "Sigmoid" => (4, Vec::new()),
        "Mish" => (5, Vec::new()),
        "HardSwish" => (6, vec![float(0, 0.2), float(1, 0.5)]),
        _ => return None,
    };
    let (before, producer) = view.only_before(at, 0, &[at])?;
    if !ACTIVATED.contains(&producer.kind.as_str()) || producer.params.contains_key(&9) {
        return None;
    }
    let mut fused = Layer { outputs: layer.outputs.clone(), ..producer.clone() }.int(9, kind);
    if !params.is_empty() {
        fused.params.insert(10, Param::Floats(params));
    }
    Some(Fusion { layer: fused, gone: vec![before] })
}
