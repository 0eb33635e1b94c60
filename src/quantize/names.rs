//! Names for what quantization adds.

use std::collections::{HashMap, HashSet};

use crate::graph::{Graph, NodeExt};

/// Gives out names that neither the model nor another addition has.
pub(crate) struct Names<'g, 'm> {
    graph: &'g Graph<'m>,
    nodes: HashSet<&'m str>,
    given: HashMap<String, String>,
    taken: HashSet<String>,
}

impl<'g, 'm> Names<'g, 'm> {
    /// For additions to `graph`.
    pub fn new(graph: &'g Graph<'m>) -> Self {
        let nodes = graph.nodes().iter().map(|node| node.label()).collect();
        Self { graph, nodes, given: HashMap::new(), taken: HashSet::new() }
    }

    /// `name`, or something like it if the model has a value or a node called so. The same name gives the same answer.
    pub fn get(&mut self, name: &str) -> String {
        if let Some(given) = self.given.get(name) {
            return given.clone();
        }
        let mut fresh = self.graph.fresh(name, None);
        while self.taken.contains(&fresh) || self.nodes.contains(fresh.as_str()) {
            fresh = self.graph.fresh(&format!("{fresh}_"), None);
        }
        self.taken.insert(fresh.clone());
        self.given.insert(name.to_owned(), fresh.clone());
        fresh
    }
}
