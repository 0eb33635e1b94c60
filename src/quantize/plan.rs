//! Which sites run on integers: the cheapest assignment, as a minimum cut.
//!
//! Each site is either float or int8 and has a cost for both; a value that crosses between the two costs a
//! `QuantizeLinear` or a `DequantizeLinear`, once, however many operators read it. The assignment with the least
//! total is the minimum cut of a network with the int8 sites on the source's side (Greig, Porteous and Seheult 1989).

use std::collections::{HashMap, HashSet};

use petgraph::algo::maximum_flow::dinics;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::cost::{DEQUANTIZE, QUANTIZE, cost};
use super::sites::Sites;
use crate::graph::Graph;

/// Capacity of an edge that no cut may cross.
const NEVER: u64 = u64::MAX / 1024;

/// Whether each site runs on integers, at the least cost.
///
/// `float` says which sites must stay float.
pub(crate) fn cheapest(
    graph: &Graph,
    sites: &Sites,
    float: &HashSet<usize>,
    elements: impl Fn(&str) -> f64,
) -> Vec<bool> {
    let mut network = Network::new(sites.all.len());
    for (i, site) in sites.all.iter().enumerate() {
        let cost = cost(graph, site, &elements);
        network.site(i, cost.float, if float.contains(&i) { f64::INFINITY } else { cost.int8 });
    }
    for value in sites.values() {
        let producer = sites.producer(graph, value);
        let readers: HashSet<Option<usize>> = graph
            .consumers(value)
            .iter()
            .map(|&id| sites.of_node(id).filter(|&i| sites.all[i].inputs.contains(&value)))
            .collect();
        let read_as_float = graph.is_observable(value) || readers.contains(&None);
        let readers: Vec<usize> = readers.into_iter().flatten().collect();
        let free = producer.is_some_and(|i| sites.all[i].op.float_output);
        network.quantization(producer, &readers, elements(value) * QUANTIZE);
        if let Some(producer) = producer {
            let price = if free { 0.0 } else { elements(value) * DEQUANTIZE };
            network.dequantization(producer, &readers, read_as_float, price);
        }
    }
    network.cut()
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

    /// Whether each site is on the int8 side of the minimum cut (the smallest such side).
    fn cut(self) -> Vec<bool> {
        let (_, flow) = dinics(&self.graph, self.int8, self.float);
        let mut reached = HashMap::from([(self.int8, ())]);
        let mut open = vec![self.int8];
        while let Some(node) = open.pop() {
            let forward = self.graph.edges_directed(node, petgraph::Outgoing);
            let forward = forward.filter(|e| flow[e.id().index()] < *e.weight()).map(|e| e.target());
            let backward = self.graph.edges_directed(node, petgraph::Incoming);
            let backward = backward.filter(|e| flow[e.id().index()] > 0).map(|e| e.source());
            for next in forward.chain(backward).collect::<Vec<_>>() {
                if reached.insert(next, ()).is_none() {
                    open.push(next);
                }
            }
        }
        self.sites.iter().map(|site| reached.contains_key(site)).collect()
    }
}
