//! Casts through a type that loses nothing.

use super::pairs::{Merged, Pair};
use crate::graph::NodeExt;

/// What numbers a type holds.
#[derive(Clone, Copy)]
enum Numbers {
    /// Bits without the sign, and whether there is one.
    Integer { bits: u32, signed: bool },
    /// Bits of the significand, the hidden one included, and of the exponent.
    Float { precision: u32, exponent: u32 },
}

const fn integer(bits: u32, signed: bool) -> Numbers {
    Numbers::Integer { bits, signed }
}

const fn float(precision: u32, exponent: u32) -> Numbers {
    Numbers::Float { precision, exponent }
}

/// `TensorProto.DataType` and its numbers.
const TYPES: &[(i64, Numbers)] = &[
    (1, float(24, 8)),
    (2, integer(8, false)),
    (3, integer(7, true)),
    (4, integer(16, false)),
    (5, integer(15, true)),
    (6, integer(31, true)),
    (7, integer(63, true)),
    (9, integer(1, false)),
    (10, float(11, 5)),
    (11, float(53, 11)),
    (12, integer(32, false)),
    (13, integer(64, false)),
    (16, float(8, 8)),
];

const BOOL: i64 = 9;

/// Whether `wide` holds every number that `narrow` holds.
fn holds(wide: Numbers, narrow: Numbers) -> bool {
    use Numbers::{Float, Integer};
    match (wide, narrow) {
        (Integer { bits, signed }, Integer { bits: b, signed: s }) => bits >= b && (signed || !s),
        // Every exponent of a float type with that much precision is large enough.
        (Float { precision, .. }, Integer { bits, .. }) => precision >= bits,
        (Float { precision, exponent }, Float { precision: p, exponent: e }) => {
            precision >= p && exponent >= e
        }
        (Integer { .. }, Float { .. }) => false,
    }
}

/// From a to b to c, where b holds all of a: from a to c. Where c does not hold all of a, a conversion that overflows
/// must be the same from a as from b: it is among floats and among integers.
pub(super) fn casts(pair: Pair) -> Option<Merged> {
    let to = |node: &crate::onnx::NodeProto| node.attribute("to").map(|a| a.i());
    let numbers = |t: i64| TYPES.iter().find(|(code, _)| *code == t).map(|(_, numbers)| *numbers);
    let from = pair.first.is("Cast").then(|| pair.graph.element_type(&pair.first.input[0]))?;
    let (b, c) = (to(pair.first)?, to(pair.second)?);
    if b == c {
        return Some(Merged::First);
    }
    let a = i64::from(from?);
    let (from, over, into) = (numbers(a)?, numbers(b)?, numbers(c)?);
    let is_float = |numbers: Numbers| matches!(numbers, Numbers::Float { .. });
    let alike = c != BOOL && is_float(from) == is_float(over) && is_float(over) == is_float(into);
    if !holds(over, from) || !(holds(into, from) || alike) {
        return None;
    }
    Some(if a == c { Merged::Neither } else { Merged::Single(pair.without_first(), Vec::new()) })
}
