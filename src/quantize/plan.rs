//! Which sites run on integers: the best assignment, as a minimum cut.
//!
//! Each site is either float or int8 and has a price for both; a value that crosses between the two costs a
//! `QuantizeLinear` or a `DequantizeLinear`, once, however many operators read it. A price is time plus noise: a relative
//! noise of 1 is worth [`Limits::noise_price`] times the time of the float model. The assignment with the least total is the minimum cut of a
//! network with the int8 sites on the source's side (Greig, Porteous and Seheult 1989).

use std::collections::HashSet;

use petgraph::algo::maximum_flow::dinics;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::cost::{Cost, DEQUANTIZE, QUANTIZE, cost, on_feature_maps, out_of_float};
use super::noise::Noise;
use super::sites::Sites;
use crate::graph::Graph;

/// Capacity of an edge that no cut may cross.
const NEVER: u64 = u64::MAX / 1024;

/// The best assignment.
pub(crate) struct Assignment {
    /// Whether each site runs on integers.
    pub int8: Vec<bool>,
    /// The time of each site.
    pub costs: Vec<Cost>,
}

/// What bounds the assignment.
pub(crate) struct Limits<'l> {
    /// Whether each site may run on integers.
    pub candidates: &'l [bool],
    /// Whether each site has to.
    pub kept: &'l [bool],
    /// Times the float model's time that a relative noise of 1 is worth.
    pub noise_price: f64,
    /// Whether all that may do, whatever it costs.
    pub everything: bool,
}

/// Finds the best assignment.
pub(crate) fn best(
    graph: &Graph,
    sites: &Sites,
    limits: &Limits,
    noise: &Noise,
    elements: impl Fn(&str) -> f64,
) -> Assignment {
    let costs: Vec<Cost> = sites.all.iter().map(|site| cost(graph, site, &elements)).collect();
    let price_of_noise = limits.noise_price * costs.iter().map(|cost| cost.float).sum::<f64>();
    let mut network = Network::new(sites.all.len());
    for (i, cost) in costs.iter().enumerate() {
        let int8 = cost.int8 + price_of_noise * noise.weights[i];
        let float = if limits.kept[i] { f64::INFINITY } else { cost.float };
        network.site(i, float, if limits.candidates[i] { int8 } else { f64::INFINITY });
    }
    for &(one, other) in &sites.together {
        network.together(one, other);
    }
    for (i, site) in sites.all.iter().enumerate() {
        let price = out_of_float(graph, site, &elements);
        if price > 0.0 {
            network.quantization(sites.producer(graph, site.inputs[0]), &[i], price);
        }
    }
    for value in sites.values() {
        let producer = sites.producer(graph, value);
        let reads = |i: &usize| sites.all[*i].inputs.contains(&value);
        let readers: HashSet<Option<usize>> =
            graph.consumers(value).iter().map(|&id| sites.of_node(id).filter(reads)).collect();
        let read_as_float = graph.is_observable(value) || readers.contains(&None);
        let mut readers: Vec<usize> = readers.into_iter().flatten().collect();
        readers.sort_unstable();
        let feature_map =
            producer.into_iter().chain(readers.iter().copied()).any(|i| on_feature_maps(&sites.all[i]));
        let noisy = price_of_noise * noise.values.get(value).copied().unwrap_or(0.0);
        network.quantization(producer, &readers, QUANTIZE.cost(elements(value), feature_map) + noisy);
        if let Some(producer) = producer {
            let hands_out_floats = sites.all[producer].op.float_output;
            let price = if hands_out_floats { 0.0 } else { DEQUANTIZE.cost(elements(value), feature_map) };
            network.dequantization(producer, &readers, read_as_float, price);
            network.written(producer, if hands_out_floats { 0.0 } else { noisy });
        }
    }
    let int8 = if limits.everything { limits.candidates.to_vec() } else { network.cut() };
    Assignment { int8, costs }
}

/// The flow network. Capacities are picoseconds.
struct Network {
    graph: DiGraph<(), u64>,
    int8: NodeIndex,
    float: NodeIndex,
    sites: Vec<NodeIndex>,
}

impl Network {
    fn new(sites: usize) -> Self {
        let mut graph = DiGraph::new();
        let (int8, float) = (graph.add_node(()), graph.add_node(()));
        let sites = (0..sites).map(|_| graph.add_node(())).collect();
        Self { graph, int8, float, sites }
    }

    /// `from` on the int8 side and `to` on the float side costs `price`.
    fn edge(&mut self, from: NodeIndex, to: NodeIndex, price: f64) {
        let capacity = (price * 1000.0).round().clamp(0.0, NEVER as f64) as u64;
        if capacity > 0 {
            self.graph.add_edge(from, to, capacity);
        }
    }

    fn site(&mut self, site: usize, float: f64, int8: f64) {
        self.edge(self.int8, self.sites[site], float);
        self.edge(self.sites[site], self.float, int8);
    }

    /// Two sites on the same side.
    fn together(&mut self, one: usize, other: usize) {
        self.edge(self.sites[one], self.sites[other], f64::INFINITY);
        self.edge(self.sites[other], self.sites[one], f64::INFINITY);
    }

    /// A value made in float and read by any int8 reader is quantized once.
    fn quantization(&mut self, producer: Option<usize>, readers: &[usize], price: f64) {
        let wanted = self.graph.add_node(());
        for &reader in readers {
            self.edge(self.sites[reader], wanted, f64::INFINITY);
        }
        let producer = producer.map_or(self.float, |i| self.sites[i]);
        self.edge(wanted, producer, price);
    }

    /// A value made in int8 and read by any float reader is dequantized once.
    fn dequantization(&mut self, producer: usize, readers: &[usize], always: bool, price: f64) {
        let spared = self.graph.add_node(());
        for &reader in readers {
            self.edge(spared, self.sites[reader], f64::INFINITY);
        }
        if always {
            self.edge(spared, self.float, f64::INFINITY);
        }
        self.edge(self.sites[producer], spared, price);
    }

    /// A value made in int8 carries the noise of its integers.
    fn written(&mut self, producer: usize, price: f64) {
        self.edge(self.sites[producer], self.float, price);
    }

    /// Whether each site is on the int8 side of the minimum cut (the smallest such side).
    fn cut(self) -> Vec<bool> {
        let (_, flow) = dinics(&self.graph, self.int8, self.float);
        let mut reached = HashSet::from([self.int8]);
        let mut open = vec![self.int8];
        while let Some(node) = open.pop() {
            let forward = self.graph.edges_directed(node, petgraph::Outgoing);
            let forward = forward.filter(|e| flow[e.id().index()] < *e.weight()).map(|e| e.target());
            let backward = self.graph.edges_directed(node, petgraph::Incoming);
            let backward = backward.filter(|e| flow[e.id().index()] > 0).map(|e| e.source());
            open.extend(forward.chain(backward).filter(|&next| reached.insert(next)));
        }
        self.sites.iter().map(|site| reached.contains(site)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A value: who makes it (`None` for a float operator), who reads it, and whether a float operator does too.
    #[derive(Debug, Clone)]
    struct Value {
        producer: Option<usize>,
        readers: Vec<usize>,
        read_as_float: bool,
        quantize: u32,
        dequantize: u32,
        written: u32,
    }

    const SITES: usize = 7;

    fn value() -> impl Strategy<Value = Value> {
        let readers = prop::collection::btree_set(0..SITES, 0..4);
        let producer = prop::option::of(0..SITES);
        (producer, readers, any::<bool>(), 0..9_u32, 0..9_u32, 0..5_u32).prop_map(
            |(producer, readers, read_as_float, quantize, dequantize, written)| Value {
                producer,
                readers: readers.into_iter().filter(|&r| Some(r) != producer).collect(),
                read_as_float,
                quantize,
                dequantize,
                written,
            },
        )
    }

    /// What an assignment costs, by the definition.
    fn total(int8: &[bool], sites: &[(u32, u32)], values: &[Value]) -> u32 {
        let own: u32 = sites.iter().zip(int8).map(|(&(float, int), &i)| if i { int } else { float }).sum();
        let crossing = values.iter().map(|v| {
            let made_of_integers = v.producer.is_some_and(|p| int8[p]);
            let integers_wanted = v.readers.iter().any(|&r| int8[r]);
            let floats_wanted = v.read_as_float || v.readers.iter().any(|&r| !int8[r]);
            match made_of_integers {
                true => v.written + if floats_wanted { v.dequantize } else { 0 },
                false => {
                    if integers_wanted {
                        v.quantize
                    } else {
                        0
                    }
                }
            }
        });
        own + crossing.sum::<u32>()
    }

    proptest! {
        #[test]
        fn the_cut_is_the_best_assignment(
            sites in prop::collection::vec((0..20_u32, 0..20_u32), SITES),
            values in prop::collection::vec(value(), 0..12),
        ) {
            let mut network = Network::new(SITES);
            for (i, &(float, int8)) in sites.iter().enumerate() {
                network.site(i, float.into(), int8.into());
            }
            for v in &values {
                network.quantization(v.producer, &v.readers, v.quantize.into());
                if let Some(producer) = v.producer {
                    network.dequantization(producer, &v.readers, v.read_as_float, v.dequantize.into());
                    network.written(producer, v.written.into());
                }
            }
            let found = total(&network.cut(), &sites, &values);
            let all = (0..1_u32 << SITES).map(|bits| (0..SITES).map(|i| bits >> i & 1 == 1).collect::<Vec<_>>());
            let best = all.map(|int8| total(&int8, &sites, &values)).min();
            prop_assert_eq!(Some(found), best);
        }
    }
}
