//! Means and second moments of what each layer multiplies by its weights.
//!
//! A layer computes y = Σₖ wₖ xₖ over its inputs x: the elements of a row, or of a window of a convolution. Rounding the
//! weights by e changes y by Σₖ eₖ xₖ, whose mean square is eᵀ E\[x xᵀ\] e: the second moments are all that has to be
//! known of x. A sample of the positions of each inference is enough for them.

use multiversion::multiversion;
use rayon::prelude::*;

use super::windows::Windows;
use crate::graph::{Graph, NodeExt};
use crate::model::Model;
use crate::ops::Role;
use crate::quantize::{Sites, channel_axis};
use crate::tensor::shape;

/// Positions taken from each inference for second moments, and for means alone.
const POSITIONS: [usize; 2] = [96, 128];

/// Largest number of inputs of a layer whose moments are kept: they take the square of that.
const WIDEST: usize = 2304;

/// Of the layers of a model.
#[derive(Debug, Default)]
pub struct LayerInputs {
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    /// What the layer's node makes, which names it.
    output: String,
    input: String,
    windows: Option<Windows>,
    moments: Moments,
}

impl LayerInputs {
    /// For each layer of a folded model that could run on integers, nothing seen yet. Without `products` only the means are
    /// kept, of layers that have a bias to correct by them.
    pub fn new(model: &Model, products: bool) -> Self {
        let graph = Graph::new(model.graph());
        let sites = Sites::find(&graph);
        let layers = sites.all.iter().filter(|site| site.op.role == Role::Linear).filter_map(|site| {
            let node = graph.node(site.id);
            let dims = shape(graph.constant(node.input_at(1)?)?).ok()?;
            let (windows, groups, width) = if node.is("Conv") {
                let windows = Windows::of(node, &dims[2..])?;
                let groups = usize::try_from(node.int("group", 1)).ok()?;
                let width = dims[1] * windows.taps();
                (Some(windows), groups, width)
            } else {
                (None, 1, dims[1 - channel_axis(&graph, site.id)])
            };
            let (input, output) = (site.inputs[0].to_owned(), node.output[0].clone());
            let wanted = if products { width <= WIDEST } else { node.input_at(2).is_some() };
            wanted.then(|| Layer { output, input, windows, moments: Moments::new(groups, width, products) })
        });
        Self { layers: layers.collect() }
    }

    /// The values that have to be seen, each once.
    pub fn values(&self) -> Vec<String> {
        let mut values: Vec<_> = self.layers.iter().map(|layer| layer.input.clone()).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Takes in one inference: the dimensions and elements of each value, by name.
    pub fn observe<'v>(&mut self, value: impl Fn(&str) -> Option<(&'v [usize], &'v [f32])> + Sync) {
        self.layers.par_iter_mut().for_each(|layer| {
            if let Some((dims, elements)) = value(&layer.input) {
                layer.observe(dims, elements);
            }
        });
    }

    /// Of the layer whose node makes `output`, if anything was seen of it.
    pub(crate) fn of(&self, output: &str) -> Option<&Moments> {
        self.layers.iter().find(|layer| layer.output == output).map(|l| &l.moments).filter(|m| m.rows > 0)
    }
}

impl Layer {
    fn observe(&mut self, dims: &[usize], x: &[f32]) {
        match &self.windows {
            None if dims.last() == Some(&self.moments.width) => {
                let width = self.moments.width;
                let rows = spread(x.len() / width.max(1), self.moments.positions());
                let rows: Vec<f32> = rows.flat_map(|row| &x[row * width..][..width]).copied().collect();
                self.moments.add(0, &rows);
                self.moments.rows += rows.len() / width.max(1);
            }
            Some(windows) if dims.len() > 2 => observe_windows(windows, &mut self.moments, dims, x),
            _ => {}
        }
    }
}

fn observe_windows(windows: &Windows, moments: &mut Moments, dims: &[usize], x: &[f32]) {
    let (channels, lengths) = (dims[1], &dims[2..]);
    let Some(positions) = windows.positions(lengths) else { return };
    let (each, area) = (positions.iter().product::<usize>(), lengths.iter().product::<usize>());
    let depth = moments.width / windows.taps().max(1);
    if channels != depth * moments.groups || x.len() != dims[0] * channels * area {
        return;
    }
    let places: Vec<_> = spread(dims[0] * each, moments.positions())
        .map(|at| (at / each, windows.elements(lengths, &positions, at % each)))
        .collect();
    for group in 0..moments.groups {
        let mut rows = Vec::with_capacity(places.len() * moments.width);
        for (batch, elements) in &places {
            for channel in group * depth..(group + 1) * depth {
                let plane = &x[(batch * channels + channel) * area..][..area];
                rows.extend(elements.iter().map(|element| element.map_or(0.0, |e| plane[e])));
            }
        }
        moments.add(group, &rows);
    }
    moments.rows += places.len();
}

/// At most `limit` of `count` positions, spread by the golden ratio, so that they follow no pattern of a map.
fn spread(count: usize, limit: usize) -> impl Iterator<Item = usize> {
    const GOLDEN: f64 = 0.618_033_988_749_894_8;
    let all = count <= limit;
    (0..count.min(limit)).map(
        move |i| {
            if all { i } else { ((i as f64 * GOLDEN).fract() * count as f64) as usize }
        },
    )
}

/// Adds the products of the elements of each row.
#[multiversion(targets("x86_64+avx2"))]
fn add_products(products: &mut [f32], rows: &[f32], width: usize) {
    products.chunks_exact_mut(width).enumerate().for_each(|(k, line)| {
        let line = &mut line[k..];
        // Several rows at a time, so that the line is read and written less often.
        for rows in rows.chunks(8 * width) {
            for row in rows.chunks_exact(width) {
                let x = row[k];
                line.iter_mut().zip(&row[k..]).for_each(|(sum, &y)| *sum += x * y);
            }
        }
    });
}

/// Sums over the rows that were seen of a layer's inputs, for each group of channels.
#[derive(Debug)]
pub(crate) struct Moments {
    groups: usize,
    width: usize,
    rows: usize,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Symmetric; only what is on and right of the diagonal is kept up. Empty where means are enough.
    products: Vec<f32>,
}

impl Moments {
    fn new(groups: usize, width: usize, products: bool) -> Self {
        let products = vec![0.0; if products { groups * width * width } else { 0 }];
        let zeros = || vec![0.0; groups * width];
        Self { groups, width, rows: 0, sums: zeros(), squares: zeros(), products }
    }

    /// Adds rows of one group.
    fn add(&mut self, group: usize, rows: &[f32]) {
        let width = self.width;
        let place = group * width..(group + 1) * width;
        let (sums, squares) = (&mut self.sums[place.clone()], &mut self.squares[place]);
        for row in rows.chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
        }
        if self.products.is_empty() {
            return;
        }
        add_products(&mut self.products[group * width * width..][..width * width], rows, width);
    }

    fn positions(&self) -> usize {
        POSITIONS[usize::from(self.products.is_empty())]
    }

    /// Inputs of one output.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Groups of channels.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Mean square of each of `count` channels, over the positions of a window; `None` if there are not so many.
    pub fn powers(&self, count: usize) -> Option<Vec<f64>> {
        let taps = self.squares.len() / count.max(1);
        let mean = |channel: &[f64]| channel.iter().sum::<f64>() / (self.rows * taps) as f64;
        (taps * count == self.squares.len() && taps > 0)
            .then(|| self.squares.chunks_exact(taps).map(mean).collect())
    }

    /// Mean input.
    pub fn mean(&self, group: usize) -> Vec<f64> {
        let sums = &self.sums[group * self.width..][..self.width];
        sums.iter().map(|sum| sum / self.rows as f64).collect()
    }

    /// E\[x xᵀ\], or the covariance if a bias takes up the mean.
    ///
    /// What a few rows say of many inputs is uncertain: products of different inputs count rows / (rows + width) of what
    /// was seen (Ledoit and Wolf's shrinkage towards the diagonal, with that simple intensity).
    pub fn second(&self, group: usize, centred: bool) -> Vec<f32> {
        let (width, rows) = (self.width, self.rows as f64);
        let products = &self.products[group * width * width..][..width * width];
        let mean = if centred { self.mean(group) } else { vec![0.0; width] };
        let trust = rows / (rows + width as f64);
        let mut second = vec![0.0; width * width];
        for i in 0..width {
            for j in i..width {
                let value = f64::from(products[i * width + j]) / rows - mean[i] * mean[j];
                let value = if i == j { value.max(0.0) } else { value * trust } as f32;
                second[i * width + j] = value;
                second[j * width + i] = value;
            }
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By definition, one number after the other: so that no moment depends on the processor.
    #[test]
    fn every_instruction_set_adds_alike() {
        for width in [1, 5, 8, 37] {
            let rows: Vec<f32> =
                (0..19 * width).map(|i| ((i * 7919 + 13) % 1009) as f32 / 300.0 - 1.5).collect();
            let mut products = vec![0.0; width * width];
            add_products(&mut products, &rows, width);
            for k in 0..width {
                for l in k..width {
                    let mut sum = 0.0_f32;
                    for row in rows.chunks_exact(width) {
                        sum += std::hint::black_box(row[k] * row[l]);
                    }
                    assert_eq!(products[k * width + l].to_bits(), sum.to_bits(), "{width} {k} {l}");
                }
            }
        }
    }
}
