//! The grid that some numbers are on.
//!
//! Codes q of at most 128 and a scale s make s · q; folding may have multiplied s by anything. If the largest magnitude is
//! that of code k, s is that divided by k, so there are 128 candidates. The right one is the smallest k for which all
//! numbers are whole multiples of s: for a smaller k one of them would be 1/128 of a step or more off.

/// Largest magnitude of a code.
const LARGEST: u32 = 128;

/// Steps that a number may be off its code: float32 rounds the products, and factors folded into them.
const TOLERANCE: f64 = 1e-3;

/// A row of smaller codes than the first number gets codes of up to the second: a bias is on the grid of the sums, which
/// may not be too coarse.
const FEW: u32 = 16;
const ENOUGH: u32 = 64;

/// The scale of a row of codes of at most 128, if it is one; 0 for a row of zeros.
pub(super) fn step(row: &[f32]) -> Option<f32> {
    let largest = row.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return Some(0.0);
    }
    if !largest.is_finite() {
        return None;
    }
    let whole = |scale: f64| {
        row.iter().all(|&v| {
            let code = f64::from(v) / scale;
            (code - code.round()).abs() < TOLERANCE
        })
    };
    let scale = (1..=LARGEST).map(|k| f64::from(largest) / f64::from(k)).find(|&scale| whole(scale))?;
    // The least squared error over all codes, not over the largest alone.
    let (mut product, mut power) = (0.0, 0.0);
    for &v in row {
        let code = (f64::from(v) / scale).round();
        product += f64::from(v) * code;
        power += code * code;
    }
    let scale = (product / power) as f32;
    Some(scale / finer(row, scale))
}

/// The whole number that the codes of a row are to be multiplied by: 1 unless they are small.
pub(super) fn finer(row: &[f32], scale: f32) -> f32 {
    let largest = row.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    match (largest / scale).round() as u32 {
        0 => f32::INFINITY,
        code @ 1..FEW => (ENOUGH / code) as f32,
        _ => 1.0,
    }
}

/// Whether all of a row are codes of −128…127 times this scale.
pub(super) fn is_on_grid(row: &[f32], scale: f32) -> bool {
    row.iter().all(|&v| {
        let code = f64::from(v) / f64::from(scale);
        (-128.5..127.5).contains(&code) && (code - code.round()).abs() < TOLERANCE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_grid() {
        assert_eq!(step(&[0.0, 0.0]), Some(0.0));
        assert_eq!(step(&[1.0, 0.123_456_7, -0.777_777, 0.3]), None);
        assert_eq!(step(&[f32::NAN, 1.0]), None);
        assert_eq!(step(&[f32::INFINITY]), None);
        assert!(!is_on_grid(&[1.29], 0.01));
        assert!(is_on_grid(&[-1.28, 1.27], 0.01));
    }

    proptest! {
        #[test]
        fn a_grid_is_found_whatever_it_was_multiplied_by(
            codes in prop::collection::vec(-127..=127_i32, 1..40),
            scale in 1e-6..10.0_f32,
            factor in 1e-3..1e3_f32,
        ) {
            let row: Vec<f32> = codes.iter().map(|&q| q as f32 * scale * factor).collect();
            let found = step(&row).unwrap();
            prop_assert!(found == 0.0 || is_on_grid(&row, found));
            let largest = codes.iter().map(|q| q.unsigned_abs()).max().unwrap_or(0);
            let divisor = codes.iter().fold(0, |a, &b| gcd(a, b.abs()));
            let (expected, found) = (f64::from(scale) * f64::from(factor) * f64::from(divisor), f64::from(found));
            let codes = largest / divisor.unsigned_abs().max(1);
            let expected =
                if (1..FEW).contains(&codes) { expected / f64::from(ENOUGH / codes) } else { expected };
            prop_assert!((expected - found).abs() <= 1e-6 * expected);
        }
    }

    fn gcd(a: i32, b: i32) -> i32 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
}
