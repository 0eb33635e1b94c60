//! A blob in ncnn has one reader. What is read more often goes through a `Split`, and an output of the graph has its ONNX
//! name.

use std::collections::HashMap;

use super::names::readable;
use super::net::{Layer, Net};

/// What reads a blob: an input of a layer, or the caller.
enum Reader {
    Layer { layer: usize, input: usize },
    Output(String),
}

/// Puts a `Split` behind every blob with several readers and gives the outputs their names.
pub(super) fn insert(net: &mut Net) {
    let mut readers = readers(net);
    let mut splits: Vec<(usize, Layer)> = Vec::new();
    for at in 0..net.layers.len() {
        let is_input = net.layers[at].kind == "Input";
        for output in 0..net.layers[at].outputs.len() {
            let blob = net.layers[at].outputs[output].clone();
            let mut reading = readers.remove(&blob).unwrap_or_default();
            if is_input {
                // The caller has an input already.
                reading.retain(|reader| !matches!(reader, Reader::Output(name) if *name == blob));
            }
            match reading.as_slice() {
                [] | [Reader::Layer { .. }] => {}
                [Reader::Output(name)] if !is_input => rename(net, (at, output), name.clone()),
                _ => splits.push((at, split(net, (at, output), &reading))),
            }
        }
    }
    let mut behind: HashMap<usize, Vec<Layer>> = HashMap::new();
    for (at, split) in splits {
        behind.entry(at).or_default().push(split);
    }
    let layers = std::mem::take(&mut net.layers);
    for (at, layer) in layers.into_iter().enumerate() {
        net.layers.push(layer);
        net.layers.extend(behind.remove(&at).unwrap_or_default());
    }
}

fn readers(net: &Net) -> HashMap<String, Vec<Reader>> {
    let mut readers: HashMap<String, Vec<Reader>> = HashMap::new();
    for (layer, reading) in net.layers.iter().enumerate() {
        for (input, blob) in reading.inputs.iter().enumerate() {
            readers.entry(blob.clone()).or_default().push(Reader::Layer { layer, input });
        }
    }
    for (name, blob) in &net.outputs {
        readers.entry(blob.clone()).or_default().push(Reader::Output(readable(name)));
    }
    readers
}

fn rename(net: &mut Net, (at, output): (usize, usize), name: String) {
    let old = std::mem::replace(&mut net.layers[at].outputs[output], name.clone());
    if let Some(shape) = net.shapes.get(&old).cloned() {
        net.shapes.insert(name, shape);
    }
}

fn split(net: &mut Net, (at, output): (usize, usize), readers: &[Reader]) -> Layer {
    let blob = net.layers[at].outputs[output].clone();
    let given_away = readers.iter().any(|reader| matches!(reader, Reader::Output(name) if *name == blob));
    let source = if given_away { format!("{blob}_unsplit") } else { blob.clone() };
    if given_away {
        rename(net, (at, output), source.clone());
    }
    let mut layer = Layer { name: format!("split_{source}"), inputs: vec![source], ..Layer::new("Split") };
    for (i, reader) in readers.iter().enumerate() {
        let copy = match reader {
            Reader::Output(name) => name.clone(),
            Reader::Layer { .. } => format!("{blob}_split{i}"),
        };
        if let &Reader::Layer { layer, input } = reader {
            net.layers[layer].inputs[input].clone_from(&copy);
        }
        if let Some(shape) = net.shapes.get(&blob).cloned() {
            net.shapes.insert(copy.clone(), shape);
        }
        layer.outputs.push(copy);
    }
    layer
}
