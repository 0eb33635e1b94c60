//! Integers of four bits, two in a byte, the first in the low half, as ONNX stores int4 and uint4.

/// Packs the low four bits of each value; an odd last one is followed by 0.
///
/// # Panics
/// If `out` is not half as long, rounded up.
pub fn pack(x: &[u8], out: &mut [u8]) {
    assert_eq!(x.len().div_ceil(2), out.len());
    let (pairs, last) = x.as_chunks::<2>();
    for (byte, pair) in out.iter_mut().zip(pairs) {
        // One number, which the compiler has vectors of.
        let both = u16::from_le_bytes(*pair);
        *byte = (both & 15 | both >> 4 & 0xF0) as u8;
    }
    if let ([low], Some(byte)) = (last, out.last_mut()) {
        *byte = low & 15;
    }
}

/// The values of packed bytes, with the sign if `signed`, as int8 in the same bits.
///
/// # Panics
/// If `packed` is not half as long as `out`, rounded up.
pub fn unpack(packed: &[u8], signed: bool, out: &mut [u8]) {
    assert_eq!(out.len().div_ceil(2), packed.len());
    // −8 is 1000 in four bits: toggling that bit and subtracting it extends the sign.
    let sign = if signed { 8 } else { 0 };
    let extend = |v: u8| (v ^ sign).wrapping_sub(sign);
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(packed) {
        *pair = [extend(byte & 15), extend(byte >> 4)];
    }
    if let ([low], Some(byte)) = (last, packed.last()) {
        *low = extend(byte & 15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_back() {
        for n in [0, 1, 2, 7, 16, 33, 100] {
            let signed: Vec<u8> = (0..n).map(|i| (i % 16 - 8) as i8 as u8).collect();
            let unsigned: Vec<u8> = (0..n).map(|i| (i % 16) as u8).collect();
            for (values, is_signed) in [(&signed, true), (&unsigned, false)] {
                let (mut packed, mut back) = (vec![0; values.len().div_ceil(2)], vec![0; values.len()]);
                pack(values, &mut packed);
                unpack(&packed, is_signed, &mut back);
                assert_eq!(&back, values);
            }
        }
        let mut packed = [0; 2];
        pack(&[0xF8, 7, 0xFF], &mut packed);
        assert_eq!(packed, [0x78, 0x0F]);
    }
}
