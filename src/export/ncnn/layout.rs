//! How the weights of each layer lie in the `.bin` file.

use super::net::{Layer, Param};

/// One array of weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// What it is.
    pub what: &'static str,
    /// How many numbers.
    pub count: usize,
    /// Whether its type stands before it.
    pub tagged: bool,
}

fn tagged(what: &'static str, count: usize) -> Piece {
    Piece { what, count, tagged: true }
}

fn raw(what: &'static str, count: usize) -> Piece {
    Piece { what, count, tagged: false }
}

/// A size from a parameter; negative ones count as none.
fn size(layer: &Layer, id: u8) -> usize {
    usize::try_from(layer.get(id, 0)).unwrap_or(0)
}

type Layout = fn(&Layer) -> Vec<Piece>;

/// The layers with weights.
const LAYOUTS: &[(&str, Layout)] = &[
    ("BatchNorm", |l| ["slope", "mean", "variance", "bias"].map(|what| raw(what, size(l, 0))).into()),
    ("Convolution", |l| product(l, size(l, 0), 5, 8)),
    ("Convolution1D", |l| product(l, size(l, 0), 5, NONE)),
    ("ConvolutionDepthWise", |l| {
        product(l, if matches!(l.get(8, 0), 2 | 102) { 1 } else { size(l, 7) }, 5, 8)
    }),
    ("ConvolutionDepthWise1D", |l| product(l, size(l, 0), 5, NONE)),
    ("Deconvolution", |l| product(l, size(l, 0), 5, NONE)),
    ("DeconvolutionDepthWise", |l| product(l, size(l, 0), 5, NONE)),
    ("Embed", embed),
    ("GRU", |l| recurrent(l, 3, 4)),
    ("Gemm", gemm),
    ("GroupNorm", |l| affine(l, 1, 3)),
    ("InnerProduct", |l| product(l, size(l, 0), 1, 8)),
    ("InstanceNorm", |l| affine(l, 0, 2)),
    ("LSTM", |l| recurrent(l, 4, 4)),
    ("LayerNorm", |l| affine(l, 0, 2)),
    ("MemoryData", memory),
    ("MultiHeadAttention", attention),
    ("Normalize", |l| vec![raw("scale", size(l, 3))]),
    ("PReLU", |l| vec![raw("slope", size(l, 0))]),
    ("RNN", |l| recurrent(l, 1, 1)),
];

/// No parameter has this number.
const NONE: u8 = u8::MAX;

/// The arrays of a layer, in order.
pub(super) fn layout(layer: &Layer) -> Vec<Piece> {
    let row = LAYOUTS.iter().find(|(kind, _)| *kind == layer.kind);
    let mut pieces = row.map_or(Vec::new(), |(_, layout)| layout(layer));
    pieces.retain(|piece| piece.count > 0);
    pieces
}

fn product(layer: &Layer, scales: usize, bias: u8, int8: u8) -> Vec<Piece> {
    let count = size(layer, if layer.kind == "InnerProduct" { 2 } else { 6 });
    let mut pieces = vec![tagged("weight", count)];
    if layer.get(bias, 0) != 0 {
        pieces.push(raw("bias", size(layer, 0)));
    }
    let int8 = layer.get(int8, 0);
    if int8 != 0 {
        pieces.extend([raw("weight scales", scales), raw("input scale", 1)]);
    }
    if int8 > 100 {
        pieces.push(raw("output scale", 1));
    }
    pieces
}

fn affine(layer: &Layer, count: u8, given: u8) -> Vec<Piece> {
    let count = if layer.get(given, 1) != 0 { size(layer, count) } else { 0 };
    vec![raw("scale", count), raw("bias", count)]
}

fn embed(layer: &Layer) -> Vec<Piece> {
    let bias = if layer.get(2, 0) != 0 { size(layer, 0) } else { 0 };
    let scales = if layer.get(18, 0) != 0 { 1 } else { 0 };
    vec![tagged("table", size(layer, 3)), raw("bias", bias), raw("scale", scales)]
}

fn recurrent(layer: &Layer, gates: usize, biases: usize) -> Vec<Piece> {
    let (outputs, directions) = (size(layer, 0), if layer.get(2, 0) == 2 { 2 } else { 1 });
    let hidden = match size(layer, 3) {
        0 => outputs,
        hidden => hidden,
    };
    let rows = (directions * gates).saturating_mul(hidden);
    let mut pieces = vec![
        tagged("input weights", size(layer, 1)),
        tagged("bias", (directions * biases).saturating_mul(hidden)),
        tagged("hidden weights", rows.saturating_mul(outputs)),
    ];
    if layer.get(8, 0) != 0 {
        pieces.extend([raw("input weight scales", rows), raw("hidden weight scales", rows)]);
    }
    pieces
}

fn gemm(layer: &Layer) -> Vec<Piece> {
    let (m, n, k) = (size(layer, 7), size(layer, 8), size(layer, 9));
    let mut pieces = Vec::new();
    if layer.get(4, 0) != 0 {
        pieces.push(tagged("A", m * k));
    }
    if layer.get(5, 0) != 0 {
        pieces.push(tagged("B", n * k));
    }
    if layer.get(6, 0) != 0 {
        let counts = [(0, 1), (1, m), (2, m), (3, m * n), (4, n)];
        let count = counts.iter().find(|(kind, _)| *kind == layer.get(10, 0)).map_or(0, |(_, count)| *count);
        pieces.push(tagged("C", count));
    }
    if layer.get(18, 0) != 0 {
        pieces.extend(
            [(4, raw("A scales", m)), (5, raw("B scale", 1))]
                .into_iter()
                .filter(|(id, _)| layer.get(*id, 0) != 0)
                .map(|(_, piece)| piece),
        );
    }
    pieces
}

fn attention(layer: &Layer) -> Vec<Piece> {
    let (embed, query) = (size(layer, 0), size(layer, 2));
    let width = |id: u8| match size(layer, id) {
        0 => embed,
        width => width,
    };
    let (key, value) = (width(3), width(4));
    let outputs = query.checked_div(embed).unwrap_or(0);
    let mut pieces = vec![
        tagged("query weights", query),
        raw("query bias", embed),
        tagged("key weights", embed.saturating_mul(key)),
        raw("key bias", embed),
        tagged("value weights", embed.saturating_mul(value)),
        raw("value bias", embed),
        tagged("output weights", embed.saturating_mul(outputs)),
        raw("output bias", outputs),
    ];
    if layer.get(18, 0) != 0 {
        let scales = ["query scales", "key scales", "value scales"].map(|what| raw(what, embed));
        pieces.extend(scales.into_iter().chain([raw("output scale", 1)]));
    }
    pieces
}

fn memory(layer: &Layer) -> Vec<Piece> {
    let sizes = [0, 1, 11, 2].iter().filter(|id| layer.params.contains_key(id)).map(|&id| size(layer, id));
    let count = sizes.fold(1, usize::saturating_mul);
    let typed = matches!(layer.params.get(&21), Some(Param::Int(0)));
    vec![if typed { tagged("data", count) } else { raw("data", count) }]
}
