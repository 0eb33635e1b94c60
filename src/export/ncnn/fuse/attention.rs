//! Attention: projections, softmax(s · Q · Kᵀ) · V by heads, and the projection of the result, as `MultiHeadAttention`.
//!
//! Exporters cut and turn Q, K and V into heads in many ways. What moves values is not matched, then, but followed on the
//! numbers of the elements: wherever column c(h, d) of a projection ends up as element (h, row, d), for every row, the
//! rows of its weights can be put into the order of heads.

use std::collections::BTreeSet;

use super::super::lower::permutation_order;
use super::super::net::{Layer, Param, Weight};
use super::{DIV, Fusion, MUL, View};

/// Numbers of elements, in a shape: the outermost dimension first.
struct Elements {
    dims: Vec<usize>,
    numbers: Vec<u32>,
}

impl Elements {
    fn of(dims: &[usize]) -> Option<Self> {
        let count = u32::try_from(dims.iter().product::<usize>()).ok()?;
        Some(Self { dims: dims.to_vec(), numbers: (0..count).collect() })
    }

    /// What the elements with these indices along each axis are.
    fn taken(&self, axes: &[Vec<usize>]) -> Self {
        let mut offsets = vec![0];
        let mut stride = self.numbers.len();
        for (indices, length) in axes.iter().zip(&self.dims) {
            stride /= length.max(&1);
            offsets = offsets.iter().flat_map(|o| indices.iter().map(move |i| o + i * stride)).collect();
        }
        let numbers = offsets.into_iter().map(|offset| self.numbers[offset]).collect();
        Self { dims: axes.iter().map(Vec::len).collect(), numbers }
    }

    fn permuted(&self, order: &[usize]) -> Self {
        let mut strides = vec![1; self.dims.len()];
        for axis in (1..self.dims.len()).rev() {
            strides[axis - 1] = strides[axis] * self.dims[axis];
        }
        let mut offsets = vec![0];
        for &axis in order {
            let steps = (0..self.dims[axis]).map(|i| i * strides[axis]);
            offsets = offsets.iter().flat_map(|o| steps.clone().map(move |step| o + step)).collect();
        }
        let numbers = offsets.into_iter().map(|offset| self.numbers[offset]).collect();
        Self { dims: order.iter().map(|&axis| self.dims[axis]).collect(), numbers }
    }

    /// Behind a layer that moves values, in the blob `output`.
    fn through(self, view: &View, layer: &Layer, output: &str) -> Option<Self> {
        let dims = view.net.shapes.get(output)?;
        let whole = |dims: &[usize]| dims.iter().map(|&n| (0..n).collect()).collect::<Vec<Vec<usize>>>();
        let moved = match layer.kind.as_str() {
            "BinaryOp" => self,
            "Reshape" => Self { dims: dims.clone(), ..self },
            "Permute" => {
                let order = permutation_order(layer.get(0, 0), self.dims.len())?;
                self.permuted(&order)
            }
            "Slice" => {
                let (axis, mut start) = (usize::try_from(layer.get(1, 0)).ok()?, 0);
                for part in layer.outputs.iter().take_while(|part| *part != output) {
                    start += view.net.shapes.get(part)?.get(axis)?;
                }
                let mut axes = whole(&self.dims);
                *axes.get_mut(axis)? = (start..start + dims.get(axis)?).collect();
                self.taken(&axes)
            }
            "Crop" => {
                let [starts, ends, at] = [9, 10, 11].map(|id| match layer.params.get(&id) {
                    Some(Param::Ints(values)) => values.as_slice(),
                    _ => &[],
                });
                let mut axes = whole(&self.dims);
                for ((start, end), axis) in starts.iter().zip(ends).zip(at) {
                    let range = usize::try_from(*start).ok()?..usize::try_from(*end).ok()?;
                    *axes.get_mut(usize::try_from(*axis).ok()?)? = range.collect();
                }
                self.taken(&axes)
            }
            _ => return None,
        };
        let count = dims.iter().product::<usize>();
        (moved.dims == *dims && moved.numbers.len() == count).then_some(moved)
    }
}

/// What was walked over, from a layer back to the one that makes its values.
struct Walk {
    /// The layer where it ends.
    source: usize,
    /// Layers between, the first one first, and the blob that each makes.
    layers: Vec<(usize, String)>,
    /// Product of the scalars that the values are multiplied by.
    factor: f32,
}

/// Walks back over what moves and scales values, from input `index` of layer `at`.
fn walk(view: &View, at: usize, index: usize) -> Option<Walk> {
    let (mut layers, mut factor) = (Vec::new(), 1.0);
    let mut blob = view.layer(at).inputs.get(index)?;
    loop {
        let source = *view.producers.get(blob.as_str())?;
        let layer = view.layer(source);
        match layer.kind.as_str() {
            "Reshape" | "Permute" | "Slice" | "Crop" => {}
            "BinaryOp" => match (layer.scalar_operand(MUL), layer.scalar_operand(DIV)) {
                (Some(scalar), _) => factor *= scalar,
                (_, Some(scalar)) => factor /= scalar,
                _ => return None,
            },
            _ => {
                layers.reverse();
                return Some(Walk { source, layers, factor });
            }
        }
        layers.push((source, blob.clone()));
        blob = layer.inputs.first()?;
    }
}

impl Walk {
    /// Where the elements of a blob of the source go.
    fn elements(&self, view: &View, dims: &[usize]) -> Option<Elements> {
        let steps = self.layers.iter();
        steps.fold(Elements::of(dims), |elements, (at, blob)| elements?.through(view, view.layer(*at), blob))
    }
}

/// Heads of a size.
#[derive(Clone, Copy)]
struct Heads {
    count: usize,
    size: usize,
}

/// Which axes of Q, Kᵀ and V are rows and the elements of a head; the heads are outermost.
const BY_ROWS: [usize; 2] = [1, 2];
const BY_COLUMNS: [usize; 2] = [2, 1];

/// A projection, its weights in the order of heads.
struct Projection<'v> {
    input: &'v str,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl<'v> Projection<'v> {
    /// Of the walk that ends in it; `None` if its columns do not become heads.
    fn of(view: &View<'v>, walk: &Walk, heads: Heads, [rows_at, head_at]: [usize; 2]) -> Option<Self> {
        let layer = view.layer(walk.source);
        let [rows, columns] = matrix(view, layer)?;
        let found = walk.elements(view, &[rows, columns])?;
        let expected = [(0, heads.count), (rows_at, rows), (head_at, heads.size)];
        if found.dims.len() != 3 || expected.iter().any(|&(axis, length)| found.dims[axis] != length) {
            return None;
        }
        let by_heads = found.permuted(&[0, head_at, rows_at]);
        let column = |values: &[u32]| {
            let column = values[0] as usize;
            let same = values.iter().enumerate().all(|(row, &v)| v as usize == row * columns + column);
            (same && column < columns).then_some(column)
        };
        let order = by_heads.numbers.chunks_exact(rows.max(1)).map(column).collect::<Option<Vec<_>>>()?;
        let (weights, bias) = parameters(layer)?;
        let depth = weights.len() / columns;
        let row = |&column: &usize| &weights[column * depth..][..depth];
        Some(Self {
            input: &layer.inputs[0],
            weights: order.iter().flat_map(row).copied().collect(),
            bias: order.iter().map(|&column| bias.map_or(0.0, |bias| bias[column])).collect(),
        })
    }
}

/// Rows and columns of what an inner product makes.
fn matrix(view: &View, layer: &Layer) -> Option<[usize; 2]> {
    let plain = layer.kind == "InnerProduct" && !layer.params.contains_key(&9);
    let dims = view.net.shapes.get(layer.outputs.first()?).filter(|_| plain)?;
    dims.as_slice().try_into().ok()
}

fn parameters(layer: &Layer) -> Option<(&[f32], Option<&[f32]>)> {
    match layer.weights.as_slice() {
        [Weight::Tagged(weights)] => Some((weights, None)),
        [Weight::Tagged(weights), Weight::Raw(bias)] => Some((weights, Some(bias))),
        _ => None,
    }
}

/// Finds the projection of the result, then walks back.
pub(super) fn attention(view: &View, at: usize) -> Option<Fusion> {
    let last = view.layer(at);
    let [rows, outputs] = matrix(view, last)?;
    let merged = walk(view, at, 0).filter(|walk| walk.factor == 1.0)?;
    let context = product(view, merged.source)?;
    let (softmax, behind) = walk_to_softmax(view, merged.source)?;
    let before = walk(view, softmax, 0).filter(|walk| keeps_rows(view, walk))?;
    let scores = product(view, before.source)?;
    let [count, queries, _] = *scores;
    let heads = Heads { count, size: context[2] };
    let [to_query, to_key] = [0, 1].map(|index| walk(view, before.source, index));
    let (to_query, to_key, to_value) = (to_query?, to_key?, walk(view, merged.source, 1)?);
    if queries != rows || to_value.factor != 1.0 {
        return None;
    }
    let query = Projection::of(view, &to_query, heads, BY_ROWS)?;
    let key = Projection::of(view, &to_key, heads, BY_COLUMNS)?;
    let value = Projection::of(view, &to_value, heads, BY_ROWS)?;
    let embed = heads.count * heads.size;
    let (weights, bias) = parameters(last)?;
    if query.weights.len() / embed != outputs || weights.len() != outputs * embed {
        return None;
    }
    let columns = merged_columns(view, &merged, heads, rows)?;
    let mut result = vec![0.0; weights.len()];
    for (to, from) in result.chunks_exact_mut(embed).zip(weights.chunks_exact(embed)) {
        columns.iter().zip(from).for_each(|(&element, &weight)| to[element] = weight);
    }
    let bias = bias.map_or_else(|| vec![0.0; outputs], <[f32]>::to_vec);
    let result = Projection { input: "", weights: result, bias };
    let factor = to_query.factor * to_key.factor * before.factor;
    let walks = [&merged, &behind, &before, &to_query, &to_key, &to_value];
    let gone =
        walks.iter().flat_map(|walk| walk.layers.iter().map(|(i, _)| *i).chain([walk.source])).collect();
    let sources = [&to_query, &to_key, &to_value].map(|walk| walk.source);
    let layer = layer(view, (at, heads, factor), [query, key, value, result], sources);
    closed(view, at, gone).map(|gone| Fusion { layer, gone })
}

/// The shape of the result of a product of two activations, by heads.
fn product<'v>(view: &View<'v>, at: usize) -> Option<&'v [usize; 3]> {
    let layer = view.layer(at);
    let plain = layer.kind == "MatMul" && layer.get(0, 0) == 0;
    view.net.shapes.get(&layer.outputs[0]).filter(|_| plain)?.as_slice().try_into().ok()
}

/// The Softmax, along the rows, that makes the first factor of layer `at`.
fn walk_to_softmax(view: &View, at: usize) -> Option<(usize, Walk)> {
    let behind = walk(view, at, 0).filter(|walk| walk.factor == 1.0 && keeps_rows(view, walk))?;
    let layer = view.layer(behind.source);
    let innermost = view.net.shapes.get(&layer.outputs[0])?.len().checked_sub(1)?;
    (layer.kind == "Softmax" && layer.get(0, 0) as usize == innermost).then_some((behind.source, behind))
}

/// Whether nothing but reshapes is on the way, that leave rows what they are.
fn keeps_rows(view: &View, walk: &Walk) -> bool {
    let width = |blob: &String| view.net.shapes.get(blob).and_then(|dims| dims.last());
    walk.layers.iter().all(|(at, blob)| match view.layer(*at).kind.as_str() {
        "Reshape" => width(blob) == width(&view.layer(*at).inputs[0]),
        kind => kind == "BinaryOp",
    })
}

/// For each column of the merged heads, which element of which head it is.
fn merged_columns(view: &View, merged: &Walk, heads: Heads, rows: usize) -> Option<Vec<usize>> {
    let Heads { count, size } = heads;
    let found = merged.elements(view, &[count, rows, size])?;
    if found.dims != [rows, count * size] {
        return None;
    }
    let element = |column: usize| {
        let number = found.numbers[column] as usize;
        let (head, within) = (number / (rows * size), number % (rows * size));
        let same = (0..rows).all(|row| {
            found.numbers[row * count * size + column] as usize == (head * rows + row) * size + within
        });
        (within < size && same).then_some(head * size + within)
    };
    (0..count * size).map(element).collect()
}

fn layer(
    view: &View,
    (at, heads, factor): (usize, Heads, f32),
    projections: [Projection; 4],
    sources: [usize; 3],
) -> Layer {
    let last = view.layer(at);
    let [query, key, value, _] = &projections;
    let embed = heads.count * heads.size;
    let inputs: &[&str] = match (query.input, key.input, value.input) {
        (q, k, v) if q == k && k == v => &[q],
        (q, k, v) if k == v => &[q, k],
        (q, k, v) => &[q, k, v],
    };
    let mut parts: Vec<_> = sources.iter().filter_map(|&source| view.layer(source).origin).collect();
    parts.dedup();
    let layer = Layer {
        name: last.name.clone(),
        inputs: inputs.iter().map(|&blob| blob.to_owned()).collect(),
        outputs: last.outputs.clone(),
        origin: last.origin,
        parts,
        ..Layer::new("MultiHeadAttention")
    };
    let layer = layer.int(0, embed).int(1, heads.count).int(2, query.weights.len());
    let layer = layer.int(3, key.weights.len() / embed).int(4, value.weights.len() / embed).float(6, factor);
    let with = |layer: Layer, projection: Projection| {
        layer.weight(Weight::Tagged(projection.weights)).weight(Weight::Raw(projection.bias))
    };
    projections.into_iter().fold(layer, with)
}

/// The layers in `gone`, each once, if nothing but them and `at` reads what they make.
fn closed(view: &View, at: usize, gone: BTreeSet<usize>) -> Option<Vec<usize>> {
    let inside = |reader: &Option<usize>| reader.is_some_and(|i| i == at || gone.contains(&i));
    let read_outside = |&i: &usize| {
        let readers = view.layer(i).outputs.iter().filter_map(|blob| view.readers.get(blob.as_str()));
        readers.flatten().any(|reader| !inside(reader))
    };
    (!gone.iter().any(read_outside)).then(|| gone.into_iter().collect())
}
