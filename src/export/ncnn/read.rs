//! Reading `.param` and `.bin` files back, and what makes ncnn fail or compute something else.
//!
//! ncnn trusts its files: with a wrong count or a blob that is read twice it crashes, and it ignores what is left over.

use std::collections::{HashMap, HashSet};

use super::layout::{Piece, layout};
use super::net::{Layer, Param};
use super::write::{ALIGNMENT, ARRAY, FLOAT16_TAG, FLOAT32_TAG, INT8_TAG, MAGIC};
use crate::error::{Error, Result};

/// Longest name of a layer or blob.
const LONGEST_NAME: usize = 255;

/// Number of parameters that a layer can have.
const PARAMETERS: i32 = 32;

/// Tag of float32 values that are not padded.
const OTHER_FLOAT32_TAG: u32 = 0x0002_C056;

/// Layers that can pass an int8 blob on to those after them.
const PASSES_INT8: &str = "Split";

/// What the files hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// The layers, without weights.
    pub layers: Vec<Layer>,
    /// Bytes of weights of each layer.
    pub bytes: Vec<usize>,
}

fn wrong(reason: String) -> Error {
    Error::Model(format!("not a sound ncnn model: {reason}"))
}

/// Reads a `.param` file and, where it is given, the `.bin` file that belongs to it.
///
/// # Errors
/// [`Error::Model`] for anything that ncnn would not run, naming the layer.
pub fn read(param: &str, bin: Option<&[u8]>) -> Result<Contents> {
    let layers = parse(param)?;
    check_blobs(&layers)?;
    let bytes = bin.map_or(Ok(Vec::new()), |bin| weights(&layers, bin))?;
    Ok(Contents { layers, bytes })
}

/// Checks files that were just written.
pub(super) fn check(param: &str, bin: &[u8]) -> Result<()> {
    read(param, Some(bin)).map(drop)
}

fn parse(text: &str) -> Result<Vec<Layer>> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines.next() != Some(MAGIC) {
        return Err(wrong(format!("the first line is not {MAGIC}")));
    }
    let counts: Vec<usize> =
        lines.next().unwrap_or("").split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[layer_count, blob_count] = counts.as_slice() else {
        return Err(wrong("the second line does not hold the numbers of layers and blobs".to_owned()));
    };
    let layers: Vec<Layer> = lines.map(parse_layer).collect::<Result<_>>()?;
    if layers.len() != layer_count {
        return Err(wrong(format!("it announces {layer_count} layers and has {}", layers.len())));
    }
    let blobs: HashSet<&str> =
        layers.iter().flat_map(|l| l.inputs.iter().chain(&l.outputs)).map(String::as_str).collect();
    if blobs.len() != blob_count {
        return Err(wrong(format!("it announces {blob_count} blobs and has {}", blobs.len())));
    }
    Ok(layers)
}

fn parse_layer(line: &str) -> Result<Layer> {
    let cut = || wrong(format!("the line '{}' is cut short", line.chars().take(80).collect::<String>()));
    let mut words = line.split_whitespace();
    let mut word = || words.next().ok_or_else(cut);
    let (kind, name) = (word()?, word()?);
    let mut count =
        || word()?.parse::<u16>().map_err(|_| wrong(format!("layer '{name}' has no numbers of blobs")));
    let (inputs, outputs) = (count()?, count()?);
    let mut blobs = |count| (0..count).map(|_| word().map(str::to_owned)).collect::<Result<Vec<_>>>();
    let (inputs, outputs) = (blobs(inputs)?, blobs(outputs)?);
    let mut layer = Layer { name: name.to_owned(), inputs, outputs, ..Layer::new(kind) };
    for word in words {
        let (id, param) =
            parse_param(word).ok_or_else(|| wrong(format!("layer '{name}' has the parameter '{word}'")))?;
        layer.params.insert(id, param);
    }
    Ok(layer)
}

fn parse_param(word: &str) -> Option<(u8, Param)> {
    let (id, value) = word.split_once('=')?;
    let id: i32 = id.parse().ok()?;
    let index = if id <= ARRAY { ARRAY.checked_sub(id)? } else { id };
    let index = u8::try_from(index).ok().filter(|&i| i32::from(i) < PARAMETERS)?;
    let is_float = |text: &str| text.contains(['.', 'e', 'E']);
    let finite = |text: &str| text.parse::<f32>().ok().filter(|v| v.is_finite());
    if id > ARRAY {
        let param =
            if is_float(value) { Param::Float(finite(value)?) } else { Param::Int(value.parse().ok()?) };
        return Some((index, param));
    }
    let mut values = value.split(',');
    let length: usize = values.next()?.parse().ok()?;
    let values: Vec<&str> = values.collect();
    if values.len() != length {
        return None;
    }
    let param = if values.iter().any(|v| is_float(v)) {
        Param::Floats(values.iter().map(|v| finite(v)).collect::<Option<_>>()?)
    } else {
        Param::Ints(values.iter().map(|v| v.parse().ok()).collect::<Option<_>>()?)
    };
    Some((index, param))
}

/// Every blob is made before it is read, once, and read at most once; int8 goes to layers that take it.
fn check_blobs(layers: &[Layer]) -> Result<()> {
    let mut made: HashMap<&str, bool> = HashMap::new();
    let mut read = HashSet::new();
    let mut names = HashSet::new();
    for layer in layers {
        let name = &layer.name;
        if !names.insert(name) || [name].into_iter().chain(&layer.outputs).any(|n| n.len() > LONGEST_NAME) {
            return Err(wrong(format!("the name of layer '{name}' is taken or too long")));
        }
        for input in &layer.inputs {
            let Some(&int8) = made.get(input.as_str()) else {
                return Err(wrong(format!(
                    "layer '{name}' reads the blob '{input}', which no layer before it makes"
                )));
            };
            if int8 && !takes_int8(layer) {
                return Err(wrong(format!("layer '{name}' cannot read the int8 blob '{input}'")));
            }
            if !read.insert(input) {
                return Err(wrong(format!("the blob '{input}' is read twice, by '{name}' last")));
            }
        }
        let hands_on = layer.kind == PASSES_INT8 && layer.inputs.iter().any(|input| made[input.as_str()]);
        let int8 = hands_on || layer.convolves_integers() && layer.get(8, 0) > 100;
        for output in &layer.outputs {
            if made.insert(output, int8).is_some() {
                return Err(wrong(format!("the blob '{output}' is made twice, by '{name}' last")));
            }
        }
    }
    Ok(())
}

fn takes_int8(layer: &Layer) -> bool {
    layer.kind == PASSES_INT8 || layer.convolves_integers()
}

/// Walks over the weights and returns how many bytes each layer has.
fn weights(layers: &[Layer], bin: &[u8]) -> Result<Vec<usize>> {
    let mut rest = bin;
    let mut sizes = Vec::with_capacity(layers.len());
    for layer in layers {
        let before = rest.len();
        for piece in layout(layer) {
            rest = skip(&piece, rest).ok_or_else(|| {
                wrong(format!(
                    "the weights end, or are of another kind, in '{}' of layer '{}'",
                    piece.what, layer.name
                ))
            })?;
        }
        sizes.push(before - rest.len());
    }
    match rest.len() {
        0 => Ok(sizes),
        left => Err(wrong(format!("{left} of {} bytes of weights belong to no layer", bin.len()))),
    }
}

/// What comes behind a piece; `None` if it is cut short or its scales cannot be used.
fn skip<'b>(piece: &Piece, bytes: &'b [u8]) -> Option<&'b [u8]> {
    let (width, bytes) = if piece.tagged {
        let (tag, bytes) = bytes.split_first_chunk::<4>()?;
        (width(u32::from_le_bytes(*tag))?, bytes)
    } else {
        (4, bytes)
    };
    let size = piece.count.checked_mul(width)?.checked_next_multiple_of(ALIGNMENT)?;
    let (values, rest) = bytes.split_at_checked(size)?;
    let usable = !piece.what.ends_with("scale") && !piece.what.ends_with("scales") || {
        let (scales, _) = values.as_chunks::<4>();
        piece.tagged || scales.iter().all(|&v| f32::from_le_bytes(v).is_finite())
    };
    usable.then_some(rest)
}

fn width(tag: u32) -> Option<usize> {
    match tag {
        FLOAT32_TAG | OTHER_FLOAT32_TAG => Some(4),
        FLOAT16_TAG => Some(2),
        INT8_TAG => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "7767517\n3 3\nInput x 0 1 x 0=4\nInnerProduct fc 1 1 x y 0=2 1=1 2=8 -23310=2,0.0,6.0e+00\nReLU r 1 1 y z 0=1.0e-1\n";

    fn bin() -> Vec<u8> {
        vec![0; 4 + 8 * 4 + 2 * 4]
    }

    #[test]
    fn reads_layers_and_weights() {
        let contents = read(SOUND, Some(&bin())).unwrap();
        assert_eq!(contents.bytes, [0, 44, 0]);
        assert_eq!(contents.layers[1].params[&10], Param::Floats(vec![0.0, 6.0]));
    }

    #[test]
    fn what_ncnn_would_not_run() {
        let cases = [
            ("7767517", "1", "first line"),
            ("3 3", "3 2", "announces 2 blobs"),
            ("3 3", "4 3", "announces 4 layers"),
            ("1 1 x y", "1 1 z y", "no layer before it"),
            ("1 1 y z", "2 1 y y z", "read twice"),
            ("1 1 x y", "1 2 x y y", "made twice"),
            ("0=1.0e-1", "0=inf", "parameter '0=inf'"),
            ("=2,0.0", "=3,0.0", "parameter"),
            ("2=8", "2=9", "cut|end"),
            ("2=8", "2=2147483647", "end"),
            ("2=8", "2=7", "belong to no layer"),
        ];
        for (from, to, expected) in cases {
            let error = read(&SOUND.replacen(from, to, 1), Some(&bin())).unwrap_err().to_string();
            assert!(expected.split('|').any(|part| error.contains(part)), "{from} as {to}: {error}");
        }
        for length in 0..bin().len() {
            assert!(read(SOUND, Some(&bin()[..length])).is_err());
        }
    }

    #[test]
    fn int8_goes_only_where_it_is_read() {
        let text =
            "7767517\n3 3\nInput x 0 1 x\nConvolution c 1 1 x y 0=1 1=1 6=1 8=102\nPooling p 1 1 y z\n";
        assert!(read(text, None).unwrap_err().to_string().contains("cannot read the int8 blob 'y'"));
    }
}
