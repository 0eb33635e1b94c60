//! LSTM, GRU and RNN: gates in ncnn's order, both biases added up.

use super::super::net::{Layer, Weight};
use super::{Blob, Lowered, Lowering, Node};
use crate::graph::NodeExt;

/// A recurrent layer of ncnn.
struct Cell {
    kind: &'static str,
    /// The gate of ONNX that each gate of ncnn is.
    gates: &'static [usize],
    /// Initial states that ONNX gives as inputs 5 and 6.
    states: usize,
}

const LSTM: Cell = Cell { kind: "LSTM", gates: &[0, 2, 1, 3], states: 2 };
const GRU: Cell = Cell { kind: "GRU", gates: &[1, 0, 2], states: 1 };
const RNN: Cell = Cell { kind: "RNN", gates: &[0], states: 1 };

/// `LSTM`: the gates i, o, f, c as i, f, o, c.
pub(super) fn lstm<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    if node.input_at(7).is_some() {
        return Err("it has peepholes".into());
    }
    recurrent(lowering, node, &LSTM)
}

/// `GRU`: the gates z, r, h as r, z, h.
pub(super) fn gru<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    if node.int("linear_before_reset", 0) == 0 {
        return Err("it resets before the product (linear_before_reset = 0); PyTorch's GRU does not".into());
    }
    recurrent(lowering, node, &GRU)
}

/// `RNN` with tanh.
pub(super) fn rnn<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    recurrent(lowering, node, &RNN)
}

/// Sizes of a recurrent node.
struct Sizes {
    directions: usize,
    hidden: usize,
    input: usize,
}

fn recurrent<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>, cell: &Cell) -> Lowered {
    check(node)?;
    let x = lowering.input(node, 0)?;
    let dims = x.dims.clone();
    if dims.len() != 3 || dims[1] != 1 {
        return Err(format!("its input has the shape {dims:?}; ncnn runs one sequence at a time").into());
    }
    let x = lowering.view(node, &x, &dims, Some(1))?;
    let (sizes, weights) = weights(lowering, node, cell)?;
    let direction = match (sizes.directions, node.attribute("direction").map(|a| a.s().to_vec())) {
        (2, _) => 2,
        (_, Some(name)) if name == b"reverse" => 1,
        _ => 0,
    };
    let Sizes { directions, hidden, input } = sizes;
    let layer = Layer::new(cell.kind)
        .int(0, hidden)
        .int(1, directions * cell.gates.len() * hidden * input)
        .int(2, direction);
    let layer = if cell.kind == "LSTM" { layer.int(3, hidden) } else { layer };
    let layer = weights.into_iter().fold(layer, Layer::weight);
    let inputs = states(lowering, node, cell, &sizes)?;
    let sequence = lowering.between(node, "sequence", vec![dims[0], 1, directions * hidden], Some(1));
    let final_states = final_states(lowering, node, cell, &sizes)?;
    let inputs: Vec<&Blob> = [&x].into_iter().chain(&inputs).collect();
    let outputs: Vec<&Blob> = [&sequence].into_iter().chain(&final_states).collect();
    lowering.add(node, layer, &inputs, &outputs);
    if node.proto.output.first().is_some_and(|o| !o.is_empty()) {
        separate_directions(lowering, node, &sequence, &sizes)?;
    }
    Ok(())
}

fn check(node: &Node) -> Lowered {
    let given = |attribute: &str| node.attribute(attribute);
    let usual = |names: &[u8]| [b"Sigmoid".as_slice(), b"Tanh"].contains(&names);
    if node.input_at(4).is_some() {
        return Err("its sequences have lengths (sequence_lens)".into());
    }
    if given("clip").is_some() || node.int("input_forget", 0) != 0 || node.int("layout", 0) != 0 {
        return Err("it has a clip, coupled gates or another layout".into());
    }
    if given("activations").is_some_and(|a| !a.strings.iter().all(|name| usual(name))) {
        return Err("its activations are not sigmoid and tanh".into());
    }
    Ok(())
}

/// W, the bias and R, with the gates in ncnn's order.
fn weights(lowering: &Lowering, node: &Node, cell: &Cell) -> Lowered<(Sizes, Vec<Weight>)> {
    let (w, r) = (lowering.needed_weights(node, 1)?, lowering.needed_weights(node, 2)?);
    let dims = lowering.dims(&node.proto.input[1])?;
    let gates = cell.gates.len();
    let &[directions, rows, input] = dims.as_slice() else {
        return Err("its weights have another shape".into());
    };
    let sizes = Sizes { directions, hidden: rows / gates, input };
    let hidden = sizes.hidden;
    if rows != gates * hidden || r.len() != directions * rows * hidden {
        return Err("its weights have another shape".into());
    }
    let bias = lowering.weights(node, 3)?.unwrap_or_else(|| vec![0.0; directions * 2 * rows]);
    if bias.len() != directions * 2 * rows {
        return Err("its bias has another shape".into());
    }
    let biases = bias.chunks_exact(2 * rows).flat_map(|both| added(both, cell, hidden)).collect();
    let weights = [reordered(&w, cell, hidden * input), biases, reordered(&r, cell, hidden * hidden)];
    Ok((sizes, weights.into_iter().map(Weight::Tagged).collect()))
}

fn reordered(values: &[f32], cell: &Cell, block: usize) -> Vec<f32> {
    let directions = values.chunks_exact(cell.gates.len() * block);
    directions
        .flat_map(|all| cell.gates.iter().flat_map(move |&gate| &all[gate * block..][..block]))
        .copied()
        .collect()
}

/// The two biases of one direction as ncnn wants them: their sum, but for the last gate of a GRU, whose second one is
/// multiplied by the reset gate and stays apart.
fn added(both: &[f32], cell: &Cell, hidden: usize) -> Vec<f32> {
    let (w, r) = both.split_at(both.len() / 2);
    let gate = |values: &[f32], gate: usize| values[gate * hidden..][..hidden].to_vec();
    let sum = |index: usize| {
        gate(w, index).into_iter().zip(gate(r, index)).map(|(a, b)| a + b).collect::<Vec<f32>>()
    };
    if cell.kind == "GRU" {
        return [sum(1), sum(0), gate(w, 2), gate(r, 2)].concat();
    }
    cell.gates.iter().flat_map(|&index| sum(index)).collect()
}

/// The blobs of the initial states; none where all of them are zero.
fn states<'m>(
    lowering: &mut Lowering<'m>,
    node: &Node<'m>,
    cell: &Cell,
    sizes: &Sizes,
) -> Lowered<Vec<Blob>> {
    let indices = 5..5 + cell.states;
    let zero = |index: usize| match node.input_at(index) {
        Some(name) => lowering.floats(name).is_ok_and(|values| values.iter().all(|&v| v == 0.0)),
        None => true,
    };
    let returned = node.proto.output.iter().skip(1).any(|o| !o.is_empty());
    if indices.clone().all(zero) && !returned {
        return Ok(Vec::new());
    }
    let dims = [sizes.directions, 1, sizes.hidden];
    let state = |index: usize| match node.input_at(index) {
        Some(name) if lowering.is_constant(name) => lowering.constant_blob(node, name, &dims, Some(1)),
        Some(_) => {
            let blob = lowering.input(node, index)?;
            lowering.view(node, &blob, &dims, Some(1))
        }
        None => Ok(lowering.zeros(node, &dims, Some(1))),
    };
    indices.map(state).collect()
}

/// The blobs of the last states; none where nothing reads them.
fn final_states<'m>(
    lowering: &mut Lowering<'m>,
    node: &Node<'m>,
    cell: &Cell,
    sizes: &Sizes,
) -> Lowered<Vec<Blob>> {
    if node.proto.output.iter().skip(1).all(String::is_empty) {
        return Ok(Vec::new());
    }
    let dims = vec![sizes.directions, 1, sizes.hidden];
    let blob = |index: usize| match node.proto.output.get(index) {
        Some(name) if !name.is_empty() => lowering.output(node, index, Some(1)),
        _ => Ok(lowering.between(node, &format!("state{index}"), dims.clone(), Some(1))),
    };
    (1..=cell.states).map(blob).collect()
}

/// (T, 1, directions · H) as the (T, directions, 1, H) of ONNX.
fn separate_directions<'m>(
    lowering: &mut Lowering<'m>,
    node: &Node<'m>,
    sequence: &Blob,
    sizes: &Sizes,
) -> Lowered {
    let separate = [sequence.dims[0], sizes.directions, 1, sizes.hidden];
    debug_assert_eq!(lowering.dims(&node.proto.output[0]).ok().as_deref(), Some(separate.as_slice()));
    lowering.finish(node, sequence, Some(2))
}
