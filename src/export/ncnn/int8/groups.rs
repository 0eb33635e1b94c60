//! Grouped convolutions. The x86 kernels of several versions of ncnn compute int8 convolutions with groups wrongly unless
//! each channel is a group, so a few groups become convolutions of their own, between a `Slice` and a `Concat`.

use super::super::net::{Layer, Net, Param, Weight};

/// More groups than this are too small to gain.
const MOST_GROUPS: i32 = 8;

/// Number of groups that have to be taken apart; 1 for none.
pub(super) fn groups_apart(layer: &Layer) -> i32 {
    let groups = layer.get(7, 1);
    if layer.kind == "ConvolutionDepthWise" && !is_depthwise(layer) { groups } else { 1 }
}

fn is_depthwise(layer: &Layer) -> bool {
    let per_filter = i64::from(layer.get(1, 1)) * i64::from(layer.get(11, layer.get(1, 1)));
    let channels_of_filter = i64::from(layer.get(6, 0)) / (per_filter * i64::from(layer.get(0, 1))).max(1);
    layer.get(7, 1) == layer.get(0, 0) && channels_of_filter == 1
}

/// Why a grouped convolution stays float.
pub(super) fn refusal(layer: &Layer) -> Option<String> {
    let groups = groups_apart(layer);
    (groups > MOST_GROUPS)
        .then(|| format!("it has {groups} groups; up to {MOST_GROUPS} become convolutions of their own"))
}

/// The convolutions of the groups, and what cuts their input and joins their results: (before, convolutions, behind).
pub(super) fn apart(net: &mut Net, layer: Layer, groups: i32) -> (Layer, Vec<Layer>, Layer) {
    let count = groups as usize;
    let name = |what: &str, i: usize| format!("{}/{what}{i}", layer.outputs[0]);
    let parts: Vec<String> = (0..count).map(|i| name("group", i)).collect();
    let results: Vec<String> = (0..count).map(|i| name("result", i)).collect();
    for (names, whole) in [(&parts, &layer.inputs[0]), (&results, &layer.outputs[0])] {
        let mut shape = net.shapes.get(whole).cloned().unwrap_or_default();
        if let Some(channels) = shape.first_mut() {
            *channels /= count;
        }
        net.shapes.extend(names.iter().map(|name| (name.clone(), shape.clone())));
    }
    let convolution = |i: usize| {
        let mut part = Layer { kind: "Convolution".to_owned(), ..layer.clone() };
        part.name = format!("{}_group{i}", layer.name);
        (part.inputs, part.outputs) = (vec![parts[i].clone()], vec![results[i].clone()]);
        part.set(0, layer.get(0, 0) / groups);
        part.set(6, layer.get(6, 0) / groups);
        part.params.remove(&7);
        part.weights = layer.weights.iter().map(|weight| share(weight, i, count)).collect();
        part
    };
    let convolutions = (0..count).map(convolution).collect();
    let before = Layer {
        name: format!("{}_slice", layer.name),
        inputs: layer.inputs.clone(),
        outputs: parts.clone(),
        ..Layer::new("Slice")
    };
    let before = Layer { params: [(0, Param::Ints(vec![-233; count])), (1, Param::Int(0))].into(), ..before };
    let behind = Layer {
        name: format!("{}_concat", layer.name),
        inputs: results.clone(),
        outputs: layer.outputs.clone(),
        ..Layer::new("Concat")
    };
    (before, convolutions, behind.int(0, 0))
}

fn share(weight: &Weight, index: usize, count: usize) -> Weight {
    let part = |values: &[f32]| {
        let length = values.len() / count;
        values[index * length..][..length].to_vec()
    };
    match weight {
        Weight::Tagged(values) => Weight::Tagged(part(values)),
        Weight::Raw(values) => Weight::Raw(part(values)),
        Weight::Int8(values) => Weight::Int8(values.clone()),
    }
}
