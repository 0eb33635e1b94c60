//! The same in the float model, for runtimes that know one scale for an activation and read nothing between two operators.
//!
//! Only values that products by weights take the factors of up on every side are divided, through additions, pooling and
//! the like; each of these is taken to run on integers, but none of them has to. The model computes what it did. A clip at
//! an upper bound then cuts a channel off at r\[c\] times the bound, which is above what calibration saw of it.

use super::super::placement::Placement;
use super::super::sites::Sites;
use super::super::weights::{self, Factors, weight_of};
use super::{Balance, of_those};
use crate::calibration::Calibration;
use crate::correct::LayerInputs;
use crate::error::Result;
use crate::given::Given;
use crate::graph::Graph;
use crate::model::Model;
use crate::ops::Role;
use crate::patch::apply;
use crate::qparams::Scheme;
use crate::quantize::writer::Writer;
use crate::tensor::{shape, tensor};

/// The values of a graph that are worth it, and their factors; better ones if something was seen of the inputs of its layers.
pub(crate) fn in_float<'m>(
    graph: &Graph<'m>,
    calibration: &Calibration,
    scheme: Scheme,
    inputs: Option<&LayerInputs>,
) -> Balance<'m> {
    let sites = Sites::find(graph);
    let int8 = vec![true; sites.all.len()];
    let static_shapes = graph.has_static_inputs();
    let given = Given::default();
    let placement =
        Placement { graph, sites: &sites, int8: &int8, calibration, given: &given, static_shapes };
    let divisible =
        |value: &str| sites.producer(graph, value).is_some() && !placement.has_float_reader(value);
    of_those(&placement, (scheme, inputs), divisible)
}

/// `model`, whose graph this is, with the factors in its weights and biases.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights are not finite.
pub(crate) fn divided(model: &Model, graph: &Graph, balance: &Balance) -> Result<Model> {
    if balance.is_empty() {
        return Ok(model.clone());
    }
    let factors = |value: &str| balance.get(value).map(|balanced| balanced.factors.as_slice());
    let mut writer = Writer::new(graph);
    for site in Sites::find(graph).all.iter().filter(|site| site.op.role == Role::Linear) {
        let factors = Factors { input: factors(site.inputs[0]), output: factors(site.outputs[0]) };
        if factors.input.is_none() && factors.output.is_none() {
            continue;
        }
        let weight = weights::with_factors(graph, site.id, factors)?;
        let weight = tensor("", &shape(weight_of(graph, site.id)?)?, &weight);
        let bias = weights::bias(graph, site.id)?.map(|bias| weights::divided(&bias, factors.output));
        let bias = bias.map(|bias| tensor("", &[bias.len()], &bias));
        writer.replace_weights(site.id, Some(weight), bias);
    }
    apply(model.clone(), writer.patch)
}
