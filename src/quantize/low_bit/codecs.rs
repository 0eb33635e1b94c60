//! The number formats: a weight is s · (level − z), a level being what its code stands for.
//!
//! | name | levels | scale s |
//! |---|---|---|
//! | int8 | −127…127 | absmax / 127 |
//! | int4 | −8…7 | the one of the least squared error, up to absmax / 7 |
//! | uint4 | 0…15, with a zero point z | the same, up to (max − min) / 15 |
//! | log2 | 0, ±1, ±2, ±4 … ±64: a sign and an exponent | the one of the least squared error about absmax / 64 |
//! | binary | −1, 1 | mean of the magnitudes, which has the least squared error of all |
//!
//! log2 is the logarithmic representation of Miyashita, Lee and Murmann 2016 (section 3), rounded to the nearest level
//! instead of the nearest exponent, so that the error is smaller; binary is that of Rastegari et al. 2016 (section 3.1).
//! All levels are int8 numbers, so that int8 kernels can multiply by them.

use crate::tensor::DataType;

/// A number format of weights.
#[derive(Debug, PartialEq)]
pub struct Codec {
    /// What users call it.
    pub name: &'static str,
    /// Bits of a code: 1, 4 or 8.
    pub bits: usize,
    /// What each code stands for.
    pub levels: &'static [i8],
    /// How the scale is found.
    pub(super) fit: Fit,
    /// The ONNX type with the same codes, if there is one.
    pub(crate) data_type: Option<DataType>,
}

/// Ways to find the scale of some weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// The largest magnitude.
    AbsMax,
    /// The clipping range around 0 of the least squared error.
    Symmetric,
    /// The same for a range with a zero point.
    Asymmetric,
    /// The best position of the levels, which are the same in each octave.
    Octave,
    /// The mean magnitude.
    MeanMagnitude,
}

/// All formats.
pub static CODECS: [Codec; 5] = [
    Codec { name: "int8", bits: 8, levels: &INT8, fit: Fit::AbsMax, data_type: Some(DataType::Int8) },
    Codec { name: "int4", bits: 4, levels: &INT4, fit: Fit::Symmetric, data_type: Some(DataType::Int4) },
    Codec { name: "uint4", bits: 4, levels: &UINT4, fit: Fit::Asymmetric, data_type: Some(DataType::Uint4) },
    Codec { name: "log2", bits: 4, levels: &LOG2, fit: Fit::Octave, data_type: None },
    Codec { name: "binary", bits: 1, levels: &[-1, 1], fit: Fit::MeanMagnitude, data_type: None },
];

/// Two's complement: code 255 is −1. The code of −128 is left out.
const INT8: [i8; 256] = {
    let mut levels = [0; 256];
    let mut code = 0;
    while code < 256 {
        levels[code] = if code == 128 { -127 } else { code as u8 as i8 };
        code += 1;
    }
    levels
};
const INT4: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1];
const UINT4: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// The highest bit is the sign, the others are 0 for 0 and else one more than the exponent.
const LOG2: [i8; 16] = [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64];

impl Codec {
    /// The format of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CODECS.iter().find(|codec| codec.name == name)
    }

    /// Whether levels are counted from a zero point.
    pub fn has_zero_point(&self) -> bool {
        self.fit == Fit::Asymmetric
    }

    /// Whether a part of a channel can have a scale of its own: ONNX and ONNX Runtime know such weights.
    pub fn has_blocks(&self) -> bool {
        self.bits == 4 && self.data_type.is_some()
    }

    /// The levels in ascending order, each once.
    pub fn sorted(&self) -> Vec<i8> {
        let mut sorted = self.levels.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    }

    /// The codes of levels, `8 / bits` of them in a byte, the first in the lowest bits; the last byte is filled up with 0.
    ///
    /// # Panics
    /// If one of them is no level of this format.
    pub fn pack(&self, levels: impl Iterator<Item = i8>) -> Vec<u8> {
        let mut codes = [None; 256];
        for (code, &level) in self.levels.iter().enumerate().rev() {
            codes[usize::from(level as u8)] = Some(code as u8);
        }
        let mut packed = Vec::with_capacity(levels.size_hint().0 * self.bits / 8 + 1);
        for (i, level) in levels.enumerate() {
            let code = codes[usize::from(level as u8)].expect("a level of the format");
            let shift = i * self.bits % 8;
            match packed.last_mut() {
                Some(byte) if shift > 0 => *byte |= code << shift,
                _ => packed.push(code),
            }
        }
        packed
    }

    /// What each byte of packed codes stands for: `256 × (8 / bits)` levels.
    pub fn pages(&self) -> Vec<i8> {
        let mask = (1_usize << self.bits) - 1;
        let of_byte = |byte: usize| (0..8).step_by(self.bits).map(move |shift| byte >> shift & mask);
        (0..256).flat_map(of_byte).map(|code| self.levels[code]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back() {
        for codec in &CODECS {
            let levels: Vec<i8> = codec.sorted().into_iter().cycle().take(301).collect();
            let packed = codec.pack(levels.iter().copied());
            assert_eq!(packed.len(), (levels.len() * codec.bits).div_ceil(8));
            let (pages, each) = (codec.pages(), 8 / codec.bits);
            let back: Vec<i8> =
                packed.iter().flat_map(|&byte| &pages[usize::from(byte) * each..][..each]).copied().collect();
            assert_eq!(back[..levels.len()], levels, "{}", codec.name);
        }
    }

    #[test]
    fn int4_is_packed_as_onnx_does() {
        let packed = Codec::named("int4").unwrap().pack([-8, 7, -1].into_iter());
        assert_eq!(packed, [0x78, 0x0F]);
    }

    #[test]
    fn levels_of_the_logarithmic_format_are_powers_of_two() {
        let levels = Codec::named("log2").unwrap().sorted();
        assert_eq!(levels.len(), 15);
        assert!(levels.iter().all(|&level| level == 0 || level.unsigned_abs().is_power_of_two()));
    }
}
