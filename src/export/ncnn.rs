//! ncnn: `.param` (the layers), `.bin` (their weights) and `.table` (the scales, as `ncnn2int8` reads them).
//!
//! 1. [`lower`]: the ONNX graph as layers, each operator by a row of a table.
//! 2. [`fuse`]: what takes several layers in ONNX and one in ncnn.
//! 3. [`int8`]: which layers run on integers, and their scales.
//! 4. [`splits`]: a copy of each blob for everyone who reads it.
//! 5. [`mod@write`]: the files. [`mod@read`] reads them back and checks them.
//!
//! [`simulation`] is what the integers compute, as an ONNX model.

mod codes;
mod fuse;
mod int8;
mod layout;
mod lower;
mod names;
mod net;
mod read;
mod simulation;
mod splits;
mod write;

use std::collections::{HashMap, HashSet};

use super::{Corrected, Options};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId};
use crate::model::Model;
use crate::qparams::Scheme;
use crate::quantize::LayerRecord;
use crate::quantize::balance::Balance;
use crate::quantize::scales::Grids;
pub use net::{Layer, Param, Weight};
pub use read::{Contents, read};

/// Number format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As in ONNX.
    Float32,
    /// Half the size; ncnn computes with float32 or float16 as it is told to.
    Float16,
    /// int8 where a layer runs on integers, float16 elsewhere.
    Int8,
}

/// The files, and how they came about.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Text of the `.param` file.
    pub param: String,
    /// Content of the `.bin` file.
    pub bin: Vec<u8>,
    /// Text of the `.table` file; `None` without int8.
    pub table: Option<String>,
    /// One record for each operator with weights.
    pub layers: Vec<LayerRecord>,
    /// What the layers with a scale for their input compute, as QuantizeLinear/DequantizeLinear pairs; all else in float.
    pub simulation: Model,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Why a model cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Name of the node, or of the input or output.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// What ncnn cannot do.
    pub reason: String,
    /// The nearest thing to do.
    pub hint: String,
}

impl Unsupported {
    fn about(value: &str, op_type: &str, reason: &str) -> Self {
        Self {
            node: value.to_owned(),
            op_type: op_type.to_owned(),
            reason: reason.to_owned(),
            hint: String::new(),
        }
    }
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, op_type, reason, hint } = self;
        write!(f, "'{node}' ({op_type}) cannot be exported to ncnn: {reason}")?;
        if hint.is_empty() { Ok(()) } else { write!(f, "; {hint}") }
    }
}

/// Everything that stands against exporting `model`, whose shapes are fixed and described.
///
/// # Errors
/// [`Error::Model`] when the model is inconsistent.
pub fn unsupported(model: &Model) -> Result<Vec<Unsupported>> {
    let graph = Graph::new(model.graph());
    graph.check()?;
    Ok(lower::lower(&graph, model.opset().unwrap_or(1)).err().unwrap_or_default())
}

/// Whether `model`, whose shapes are fixed and described, can be exported.
///
/// # Errors
/// [`Error::Unsupported`] naming a node that cannot be, [`Error::Model`] when the model is inconsistent.
pub fn check(model: &Model) -> Result<()> {
    let graph = Graph::new(model.graph());
    graph.check()?;
    lowered(model, &graph).map(drop)
}

/// Exports a folded model whose shapes are fixed and described. With [`Format::Int8`] and no calibration, what needs no
/// ranges of activations is quantized: the products are of weights and of rows that ncnn quantizes as it runs.
///
/// # Errors
/// [`Error::Unsupported`] naming a node that cannot be exported, [`Error::Tensor`] for weights that cannot be read,
/// [`Error::Data`] for a calibration with values that are not finite.
pub fn export(
    model: &Model,
    calibration: Option<&Calibration>,
    format: Format,
    options: &Options,
) -> Result<Exported> {
    if let Some(calibration) = calibration {
        calibration.check_finite()?;
    }
    let graph = Graph::new(model.graph());
    graph.check()?;
    let calibration = calibration.filter(|_| format == Format::Int8);
    let Planned { model, plans, table, notes, changes } =
        planned((model, &graph), calibration, format, options)?;
    let graph = Graph::new(model.graph());
    let mut net = lowered(&model, &graph)?;
    let int8::Quantized { mut layers, inputs } = int8::quantize((&mut net, &graph), plans, &options.given)?;
    Corrected::mark(&changes, &mut layers);
    let table = table.or_else(|| (format == Format::Int8).then(|| int8::table(&net)));
    splits::insert(&mut net);
    let (param, bin) = (write::param(&net), write::bin(&net, format != Format::Float32));
    read::check(&param, &bin)?;
    let simulation = simulation::pairs(&model, &graph, inputs, &options.given)?;
    Ok(Exported { param, bin, table, layers, simulation, notes })
}

/// What is to be written.
struct Planned {
    /// The model, changed for the sake of its integers.
    model: Model,
    plans: Vec<Option<int8::Plan>>,
    /// The calibration table of the model as it was, if it was changed: that is what one makes a float export of.
    table: Option<String>,
    notes: Vec<String>,
    /// What was changed, by the label of the layer.
    changes: HashMap<String, Vec<String>>,
}

fn planned(
    (model, graph): (&Model, &Graph),
    calibration: Option<&Calibration>,
    format: Format,
    options: &Options,
) -> Result<Planned> {
    let net = lowered(model, graph)?;
    let Some(calibration) = calibration else {
        let plans = int8::plans((&net, graph), None, format, options)?;
        return Ok(Planned {
            model: model.clone(),
            plans,
            table: None,
            notes: Vec::new(),
            changes: HashMap::new(),
        });
    };
    let scheme = Scheme::Symmetric;
    let (equalized, balance) = options.changes.equalized((model, graph), calibration, scheme)?;
    let given = options.given.limited("ncnn", true);
    let grids = Grids { calibration, balance: &balance, given: &given, method: options.method, scheme };
    let plans = int8::plans((&net, graph), Some(&grids), format, options)?;
    let products: Vec<NodeId> = int8::with_grids(&net, &plans).map(|(id, _)| id).collect();
    let weights = |graph: &Graph| simulation::weights(graph, products.iter().copied(), &given);
    let Corrected { model: changed, mut notes, layers } =
        options.changes.corrected(&equalized, &balance, weights)?;
    let used: HashSet<&str> = products.iter().map(|&id| graph.node(id).input[0].as_str()).collect();
    notes.extend(given.remarks(graph, |value| used.contains(value)));
    let table = match balance.is_empty() {
        true => None,
        false => {
            let grids = Grids { balance: &Balance::new(), ..grids };
            let mut as_it_was = int8::plans((&net, graph), Some(&grids), format, options)?;
            as_it_was
                .iter_mut()
                .zip(&plans)
                .for_each(|(plan, other)| int8::agree(plan.as_mut(), other.as_ref()));
            let mut net = net;
            int8::quantize((&mut net, graph), as_it_was, &given)?;
            Some(int8::table(&net))
        }
    };
    Ok(Planned { model: changed, plans, table, notes, changes: layers })
}

/// `model`, whose graph this is, as layers.
fn lowered(model: &Model, graph: &Graph) -> Result<net::Net> {
    let mut net = lower::lower(graph, model.opset().unwrap_or(1)).map_err(|refused| refusal(&refused))?;
    fuse::fuse(&mut net);
    Ok(net)
}

fn refusal(refused: &[Unsupported]) -> Error {
    let more = match refused.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more; --list-unsupported shows all)"),
    };
    Error::Unsupported(format!("{}{more}", refused[0]))
}
