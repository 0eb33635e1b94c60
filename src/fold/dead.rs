//! Nodes that nobody reads, found in one walk from the outputs back.
//!
//! Every operator of the default domain is a function of its inputs and, at most, a source of random numbers, so a node
//! without readers can go, and with it what only it read. Operators of other domains may do something besides.

use foldhash::{HashSet, HashSetExt};

use super::Changes;
use crate::error::Result;
use crate::graph::{Graph, capture, subgraphs};
use crate::model::is_default_domain;

/// The pass.
pub(super) fn dead(graph: &Graph) -> Result<Changes> {
    let mut changes = Changes::default();
    let mut read: HashSet<&str> = HashSet::with_capacity(graph.nodes().len());
    for (id, node) in graph.nodes().iter().enumerate().rev() {
        let needed = |output: &String| graph.is_output(output) || read.contains(output.as_str());
        let used = node.output.iter().filter(|o| !o.is_empty()).any(needed);
        if !used && is_default_domain(node.domain()) {
            changes.patch.remove(id);
            changes.gone.push(id);
            continue;
        }
        read.extend(node.input.iter().map(String::as_str));
        node.attribute.iter().flat_map(subgraphs).for_each(|body| capture(body, &mut read));
    }
    changes.gone.reverse();
    Ok(changes)
}
