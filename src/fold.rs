//! Simplification before quantization: constants gathered, no-ops dropped, linear chains folded into the weights.
//!
//! A rule is a pure function of the index and one node. It answers with a [`Patch`], with a reason why it declines, or
//! that the node is none of its business. [`fold`] sweeps the rules over the graph until nothing changes.

mod absorb;
pub(crate) mod activations;
mod affine;
mod bounds;
mod constants;
mod dead;
mod depthwise;
mod duplicates;
pub mod evidence;
mod functions;
mod layout;
mod linear;
mod no_ops;
mod pads;
mod pairs;
mod parameters;
mod passage;
mod shapes;
mod types;

use std::collections::BTreeMap;

pub(crate) use self::depthwise::batch_norms_as_convolutions;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::onnx::NodeProto;
use crate::patch::{Patch, apply};

/// What a rule says about a node.
pub(crate) enum Verdict {
    /// Not a node this rule is about.
    Pass,
    /// The rule's kind of node, but the change would not be exact or not be safe.
    Decline(String),
    /// The change, and the names of the nodes it makes disappear.
    Edit(Patch),
}

type Rule = fn(&Graph, NodeId) -> Result<Verdict>;

/// What a look at the whole graph changes, and the nodes that are gone then.
#[derive(Default)]
struct Changes {
    patch: Patch,
    gone: Vec<NodeId>,
}

type Pass = fn(&Graph) -> Result<Changes>;

/// One stage of [`fold`].
enum Stage {
    /// Rules that run until nothing changes, in the order they are tried at a node.
    Rules(&'static [(&'static str, Rule)]),
    /// One walk over the graph.
    Pass(&'static str, Pass),
}

/// The stages.
///
/// Activations are put together before anything takes a constant out of them. Equal constants are merged last, because
/// the folds before rewrite weights that only one node reads.
const STAGES: &[Stage] = &[
    Stage::Rules(&[
        ("constant node to initializer", constants::constant),
        ("view of a constant", constants::view),
        ("transposed constant", constants::transpose),
        ("known shape", constants::known_shape),
    ]),
    Stage::Pass("drop dead node", dead::dead),
    Stage::Pass("merge equal nodes", duplicates::nodes),
    Stage::Rules(&[
        ("drop no-op", no_ops::no_op),
        ("merge pair", pairs::pair),
        ("put hard-sigmoid together", activations::hard_sigmoid),
        ("put function together", functions::function),
        ("drop transposes around", layout::region),
        ("transpose to view", layout::view),
    ]),
    Stage::Rules(&[("fold into pads", pads::pad), ("fold into weights", absorb::absorb)]),
    Stage::Pass("merge equal nodes", duplicates::nodes),
    Stage::Pass("drop dead node", dead::dead),
    Stage::Pass("merge equal constants", duplicates::constants),
];

/// One thing [`fold`] did, or declined to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldRecord {
    /// Name of the node that is gone, or stayed.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// The rule.
    pub rule: &'static str,
    /// Why it stayed; `None` when it is gone.
    pub declined: Option<String>,
}

impl FoldRecord {
    fn of(node: &NodeProto, rule: &'static str, declined: Option<String>) -> Self {
        Self { node: node.label().to_owned(), op_type: node.op_type().to_owned(), rule, declined }
    }
}

/// Folds `model` and says what was done.
///
/// Graph inputs, outputs and their names, metadata and functions never change. Initializers of models older than IR
/// version 4, which had to be listed as inputs, stop being inputs: nobody can have meant to override them.
///
/// # Errors
/// [`crate::Error`] when the model is inconsistent.
pub fn fold(model: &Model) -> Result<(Model, Vec<FoldRecord>)> {
    Graph::new(model.graph()).check()?;
    let mut model = constants_leave_inputs(model)?;
    let (mut stages, mut records) = (STAGES, Vec::new());
    while !stages.is_empty() {
        let patch = first_change(&model, &mut stages, &mut records)?;
        if !patch.is_empty() {
            model = apply(model, patch)?;
        }
    }
    Ok((model, records))
}

/// What the first of `stages` that changes something changes. Those that are done are taken away: rules once they find nothing.
fn first_change(model: &Model, stages: &mut &[Stage], records: &mut Vec<FoldRecord>) -> Result<Patch> {
    let graph = Graph::of(model);
    while let Some((stage, later)) = stages.split_first() {
        let patch = match *stage {
            Stage::Rules(rules) => {
                let (patch, edits, declined) = sweep(&graph, rules)?;
                records.extend(edits);
                if !patch.is_empty() {
                    return Ok(patch);
                }
                records.extend(declined.into_values());
                patch
            }
            Stage::Pass(rule, pass) => {
                let Changes { patch, gone } = pass(&graph)?;
                records.extend(gone.into_iter().map(|id| FoldRecord::of(graph.node(id), rule, None)));
                patch
            }
        };
        *stages = later;
        if !patch.is_empty() {
            return Ok(patch);
        }
    }
    Ok(Patch::default())
}

/// Asks every rule about every node once; edits that overlap wait for the next sweep.
fn sweep(
    graph: &Graph,
    rules: &[(&'static str, Rule)],
) -> Result<(Patch, Vec<FoldRecord>, BTreeMap<NodeId, FoldRecord>)> {
    let (mut patch, mut edits, mut declined) = (Patch::default(), Vec::new(), BTreeMap::new());
    for (id, node) in graph.nodes().iter().enumerate() {
        for &(rule, ask) in rules {
            match ask(graph, id)? {
                Verdict::Pass => {}
                Verdict::Decline(reason) => {
                    declined.entry(id).or_insert_with(|| FoldRecord::of(node, rule, Some(reason)));
                }
                Verdict::Edit(edit) => {
                    let gone: Vec<NodeId> = edit.removed().collect();
                    if patch.absorb(edit) {
                        edits.extend(gone.iter().map(|&id| FoldRecord::of(graph.node(id), rule, None)));
                    }
                    break;
                }
            }
        }
    }
    Ok((patch, edits, declined))
}

/// Before IR version 4 an initializer had to be an input as well, without any wish to have it overridden.
fn constants_leave_inputs(model: &Model) -> Result<Model> {
    const FIRST_WITHOUT: i64 = 4;
    if model.proto().ir_version() >= FIRST_WITHOUT {
        return Ok(model.clone());
    }
    let mut proto = model.clone().into_proto();
    let graph = proto.graph.get_or_insert_default();
    let initializers: std::collections::HashSet<_> =
        graph.initializer.iter().map(|t| t.name().to_owned()).collect();
    graph.input.retain(|i| !initializers.contains(i.name()));
    proto.ir_version = Some(FIRST_WITHOUT);
    Model::from_proto(proto)
}
