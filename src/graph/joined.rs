//! What the outputs of a graph are joined from.
//!
//! A detector often has boxes, in pixels, and scores, below 1, in one output, so that the error of the output is that of its
//! boxes. What a Concat joins is told apart by the operators that make it: the parts that one kind of operator makes are
//! of one kind, such as the boxes of every level, or the scores. Operators that only move values are looked through.

use std::collections::{BTreeMap, HashSet};

use super::{Graph, NodeExt};

/// Operators that give the elements of their first input another place, and nothing else.
const MOVES: &[&str] = &["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// The values of each kind in an output, in the order of the operators' names; the output itself if there is but one
/// kind, or none that is computed.
pub(super) fn kinds<'m>(graph: &Graph<'m>, output: &'m str) -> Vec<Vec<&'m str>> {
    let (mut kinds, mut seen) = (BTreeMap::<&str, Vec<&str>>::new(), HashSet::new());
    let mut open = vec![output];
    while let Some(value) = open.pop() {
        let Some(node) = graph.producer(value).map(|id| graph.node(id)).filter(|_| seen.insert(value)) else {
            continue;
        };
        if node.is("Concat") {
            open.extend(node.input.iter().map(String::as_str));
        } else if MOVES.iter().any(|moves| node.is(moves)) {
            open.extend(node.input.first().map(String::as_str));
        } else {
            kinds.entry(node.op_type()).or_default().push(value);
        }
    }
    if kinds.len() > 1 { kinds.into_values().collect() } else { vec![vec![output]] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{GraphProto, NodeProto, ValueInfoProto};
    use crate::patch::node;

    fn kinds_of(nodes: Vec<NodeProto>) -> Vec<Vec<String>> {
        let output = ValueInfoProto { name: Some("y".into()), ..Default::default() };
        let proto = GraphProto { node: nodes, output: vec![output], ..Default::default() };
        let graph = Graph::new(&proto);
        let owned = |kind: Vec<&str>| kind.into_iter().map(str::to_owned).collect();
        kinds(&graph, "y").into_iter().map(owned).collect()
    }

    fn level(at: usize) -> [NodeProto; 4] {
        let name = |what: &str| format!("{what}{at}");
        [
            node("Conv", "", &["x"], &[&name("box")]),
            node("Sigmoid", "", &["x"], &[&name("score")]),
            node("Concat", "", &[&name("box"), &name("score")], &[&name("both")]),
            node("Reshape", "", &[&name("both"), "shape"], &[&name("rows")]),
        ]
    }

    #[test]
    fn levels_of_one_kind_stand_together() {
        let mut nodes = [level(0), level(1)].concat();
        nodes.push(node("Concat", "", &["rows0", "rows1"], &["all"]));
        nodes.push(node("Transpose", "", &["all"], &["y"]));
        assert_eq!(kinds_of(nodes), [["box1", "box0"], ["score1", "score0"]]);
    }

    #[test]
    fn one_kind_is_the_output_itself() {
        let convolutions = ["a", "b"].map(|name| node("Conv", "", &["x"], &[name]));
        let joined = node("Concat", "", &["a", "b", "a", "x"], &["y"]);
        assert_eq!(kinds_of([&convolutions[..], &[joined]].concat()), [["y"]]);
        assert_eq!(kinds_of(vec![node("Transpose", "", &["x"], &["y"])]), [["y"]]);
        assert_eq!(kinds_of(vec![]), [["y"]]);
    }

    #[test]
    fn a_cycle_ends() {
        let nodes = vec![node("Concat", "", &["y", "z"], &["y"]), node("Conv", "", &["y"], &["z"])];
        assert_eq!(kinds_of(nodes), [["y"]]);
    }
}
