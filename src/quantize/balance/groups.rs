//! Which channels of which values have to share a factor.

use std::collections::HashMap;

use super::Balanced;
use crate::calibration::Channels;
use crate::graph::{Graph, NodeExt};
use crate::observer::Observer;
use crate::ops::Role;
use crate::qparams::Range;
use crate::quantize::placement::Placement;
use crate::quantize::sites::Site;
use crate::tensor::shape;

/// Channels of the values that become integers, joined where operators join them.
pub(super) struct Groups<'p, 'm> {
    placement: Placement<'p, 'm>,
    values: HashMap<&'m str, Channelled<'p>>,
    /// In the order in which they were made.
    names: Vec<&'m str>,
    /// Of each channel, another one of its set, or itself.
    parents: Vec<usize>,
    /// Whether the set of a channel, at its root, has the factor 1.
    pinned: Vec<bool>,
    /// Of each value, by its place in `names`, another one that it shares factors with, or itself.
    relatives: Vec<usize>,
}

struct Channelled<'p> {
    /// Its place among the names.
    place: usize,
    first: usize,
    count: usize,
    axis: i64,
    /// What was seen; `None` for a value that is only a moved one.
    seen: Option<&'p Channels>,
}

impl<'p, 'm> Groups<'p, 'm> {
    /// Joins what the operators of a placement join.
    pub fn of(placement: &Placement<'p, 'm>) -> Self {
        let mut groups = Self {
            placement: *placement,
            values: HashMap::new(),
            names: Vec::new(),
            parents: Vec::new(),
            pinned: Vec::new(),
            relatives: Vec::new(),
        };
        for value in placement.sites.values() {
            if let Some(seen) = placement.calibration.channels(value).filter(|c| !c.min().is_empty()) {
                groups.add(value, seen.min().len(), seen.axis(), Some(seen));
            }
        }
        for (_, site) in placement.integer_sites() {
            groups.join(site);
        }
        groups
    }

    /// Gives a value the factor 1.
    pub fn pin(&mut self, value: &str) {
        let Some(channels) = self.values.get(value) else { return };
        for channel in channels.first..channels.first + channels.count {
            let root = self.root(channel);
            self.pinned[root] = true;
        }
    }

    /// For each value the ratio of each channel to the loudest, the largest ratio of those that belong together.
    pub fn ratios(&mut self) -> Vec<(&'m str, Vec<f32>)> {
        let mut largest = vec![0.0_f32; self.parents.len()];
        for name in self.names.clone() {
            let Channelled { first, seen: Some(seen), .. } = self.values[name] else { continue };
            let magnitudes = magnitudes(seen);
            let whole = magnitudes.iter().copied().fold(0.0, f32::max);
            for (c, magnitude) in magnitudes.into_iter().enumerate() {
                let root = self.root(first + c);
                // A channel that was always 0 says nothing about how loud it can be.
                let ratio = if magnitude > 0.0 { magnitude / whole } else { 0.0 };
                largest[root] = largest[root].max(ratio);
            }
        }
        let mut ratios = Vec::new();
        for name in self.names.clone() {
            let Channelled { first, count, .. } = self.values[name];
            let of_channel = |c| {
                let root = self.root(c);
                if self.pinned[root] || largest[root] == 0.0 { 1.0 } else { largest[root] }
            };
            ratios.push((name, (first..first + count).map(of_channel).collect()));
        }
        ratios
    }

    /// A value by which all are called that share factors with this one.
    pub fn component(&mut self, value: &str) -> &'m str {
        self.names[root(&mut self.relatives, self.values[value].place)]
    }

    /// A value with these factors.
    pub fn balanced(&self, value: &str, factors: Vec<f32>) -> Balanced {
        let Channelled { axis, seen, .. } = self.values[value];
        let mut range = Range::ZERO;
        let mut include = |min: f32, max: f32, factor: f32| {
            if min <= max {
                range = Range { min: range.min.min(min / factor), max: range.max.max(max / factor) };
            }
        };
        match seen {
            Some(seen) => {
                let extremes = seen.min().iter().zip(seen.max()).zip(&factors);
                extremes.for_each(|((&min, &max), &factor)| include(min, max, factor));
            }
            None => {
                let smallest = factors.iter().copied().fold(1.0, f32::min);
                let whole = self.placement.calibration.get(value).and_then(Observer::range);
                whole.into_iter().for_each(|whole| include(whole.min, whole.max, smallest));
            }
        }
        Balanced { axis, factors, range }
    }

    fn add(&mut self, value: &'m str, count: usize, axis: i64, seen: Option<&'p Channels>) {
        let first = self.parents.len();
        self.parents.extend(first..first + count);
        self.pinned.resize(first + count, false);
        let place = self.names.len();
        self.names.push(value);
        self.relatives.push(place);
        self.values.insert(value, Channelled { place, first, count, axis, seen });
    }

    fn root(&mut self, channel: usize) -> usize {
        root(&mut self.parents, channel)
    }

    /// Joins the channels of one value, from `start` on, with those of another.
    fn tie(&mut self, one: &str, start: usize, other: &str) {
        let (first, second) = (self.values[one].first + start, self.values[other].first);
        for i in 0..self.values[other].count {
            let (a, b) = (self.root(first + i), self.root(second + i));
            self.pinned[a] |= self.pinned[b];
            self.parents[b] = a;
        }
        let (a, b) = (self.values[one].place, self.values[other].place);
        let (a, b) = (root(&mut self.relatives, a), root(&mut self.relatives, b));
        self.relatives[b] = a;
    }

    /// What one operator demands of the values it reads and makes.
    fn join(&mut self, site: &Site<'m>) {
        let done = match (site.op.role, site.op.op_type) {
            (Role::Linear, _) => return self.product(site),
            (_, "MaxPool" | "AveragePool" | "GlobalAveragePool" | "Resize" | "LeakyRelu") => {
                self.alike(&[site.inputs[0], site.outputs[0]], 1)
            }
            (_, "Flatten" | "Squeeze" | "Reshape") => self.flattened(site),
            (_, "Add") if site.inputs.len() == 2 => {
                self.alike(&[site.inputs[0], site.inputs[1], site.outputs[0]], 1)
            }
            (_, "Mul") => self.gated(site),
            (_, "Concat") => self.concatenated(site),
            _ => false,
        };
        if !done {
            self.pin_all(site);
        }
    }

    fn pin_all(&mut self, site: &Site<'m>) {
        site.inputs.iter().chain(&site.outputs).for_each(|value| self.pin(value));
    }

    /// A product by weights takes up any factors, of channels that are those of its weights.
    fn product(&mut self, site: &Site<'m>) {
        let Some((inputs, outputs)) = widths(self.placement.graph, site) else { return self.pin_all(site) };
        let axis = if site.op.op_type == "Conv" { 1 } else { -1 };
        for (value, width) in [(site.inputs[0], inputs), (site.outputs[0], outputs)] {
            if !self.values.get(value).is_some_and(|v| v.count == width && v.axis == axis) {
                self.pin(value);
            }
        }
        if !self.placement.is_written_as_integers(site, site.outputs[0]) {
            self.pin(site.outputs[0]);
        }
    }

    /// Ties values of the same shape along the channels, or that differ elsewhere only.
    fn alike(&mut self, values: &[&'m str], axis: i64) -> bool {
        let Some(known) = values.iter().find_map(|value| self.values.get(value)) else { return true };
        let (count, known_axis) = (known.count, known.axis);
        if known_axis != axis {
            return false;
        }
        for value in values {
            match self.values.get(value) {
                Some(other) if (other.count, other.axis) != (count, axis) => return false,
                Some(_) => {}
                // What is moved has its parameters from where it came; other values have to be known.
                None if self.is_moved(value) => self.add(value, count, axis, None),
                None => return false,
            }
        }
        values[1..].iter().for_each(|other| self.tie(values[0], 0, other));
        true
    }

    fn is_moved(&self, value: &str) -> bool {
        let producer = self.placement.sites.producer(self.placement.graph, value);
        producer.is_some_and(|i| self.placement.sites.all[i].op.role == Role::Move)
    }

    /// Channels with one element each, laid out along the last axis.
    fn flattened(&mut self, site: &Site<'m>) -> bool {
        let (input, output) = (site.inputs[0], site.outputs[0]);
        let placement = self.placement;
        let pooled = placement
            .graph
            .producer(input)
            .is_some_and(|id| placement.graph.node(id).is("GlobalAveragePool"));
        let counts = |value| self.values.get(value).map(|v| v.count);
        let fits = pooled && counts(input).is_some() && counts(input) == counts(output);
        if fits {
            self.tie(input, 0, output);
        }
        fits
    }

    /// A product with a gate between 0 and 1, which has no factors: the other one hands on its own.
    fn gated(&mut self, site: &Site<'m>) -> bool {
        let placement = self.placement;
        let is_gate = |value: &&&str| {
            placement.graph.producer(value).is_some_and(|id| {
                let node = placement.graph.node(id);
                node.is("Sigmoid") || node.is("HardSigmoid")
            })
        };
        let gates: Vec<_> = site.inputs.iter().filter(is_gate).copied().collect();
        let (&[gate], &[a, b]) = (gates.as_slice(), site.inputs.as_slice()) else { return false };
        let (other, output) = (if a == gate { b } else { a }, site.outputs[0]);
        let elements = |value| placement.calibration.elements(value);
        self.pin(gate);
        elements(other) == elements(output) && self.alike(&[other, output], 1)
    }

    /// Channels of several values after each other.
    fn concatenated(&mut self, site: &Site<'m>) -> bool {
        let node = self.placement.graph.node(site.id);
        let known = |value: &&str| self.values.get(*value).filter(|v| v.axis == 1).map(|v| v.count);
        let counts: Option<Vec<_>> = site.inputs.iter().map(known).collect();
        let (Some(counts), Some(all)) = (counts, known(&site.outputs[0])) else { return false };
        let fits = node.int("axis", 0) == 1
            && node.input.len() == counts.len()
            && counts.iter().sum::<usize>() == all;
        if fits {
            let mut start = 0;
            for (value, count) in site.inputs.iter().zip(counts) {
                self.tie(site.outputs[0], start, value);
                start += count;
            }
        }
        fits
    }
}

/// The representative of a set of which `parents` are the links.
fn root(parents: &mut [usize], mut member: usize) -> usize {
    while parents[member] != member {
        parents[member] = parents[parents[member]];
        member = parents[member];
    }
    member
}

/// Largest magnitude of each channel, 0 for one that was never seen.
pub(super) fn magnitudes(seen: &Channels) -> Vec<f32> {
    let magnitude = |(&min, &max): (&f32, &f32)| if min <= max { min.abs().max(max.abs()) } else { 0.0 };
    seen.min().iter().zip(seen.max()).map(magnitude).collect()
}

/// How many channels a product by weights reads and makes.
fn widths(graph: &Graph, site: &Site) -> Option<(usize, usize)> {
    let node = graph.node(site.id);
    let dims = shape(graph.constant(node.input_at(1)?)?).ok()?;
    let axis = crate::quantize::weights::channel_axis(graph, site.id);
    let groups = if node.is("Conv") { usize::try_from(node.int("group", 1)).ok()? } else { 1 };
    Some((dims[1 - axis] * groups, dims[axis]))
}
