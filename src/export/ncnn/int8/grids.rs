//! ncnn's grid of integers.

/// Largest integer.
const LARGEST: f32 = 127.0;

/// What is not larger has no scale of its own: its integers are 0, and a factor of 1 serves.
const DEAD: f32 = 1e-20;

/// The scale, a factor, for values up to `abs_max`.
pub(super) fn scale(abs_max: f32) -> f32 {
    if abs_max > DEAD { LARGEST / abs_max } else { 1.0 }
}

/// One scale for each of `count` rows of equal length.
pub(super) fn row_scales(values: &[f32], count: usize) -> Vec<f32> {
    let length = (values.len() / count.max(1)).max(1);
    values.chunks_exact(length).map(|row| scale(crate::kernels::abs_max(row))).collect()
}

/// Rows as integers: half away from zero, −127…127.
pub(super) fn rounded(values: &[f32], scales: &[f32]) -> Vec<i8> {
    let length = (values.len() / scales.len().max(1)).max(1);
    let rows = values.chunks_exact(length).zip(scales);
    rows.flat_map(|(row, scale)| row.iter().map(move |v| (v * scale).round().clamp(-LARGEST, LARGEST) as i8))
        .collect()
}

/// Signal and noise of rounding.
pub(super) fn powers(values: &[f32], scales: &[f32], integers: &[i8]) -> (f64, f64) {
    let length = (values.len() / scales.len().max(1)).max(1);
    let rows = values.chunks_exact(length).zip(integers.chunks_exact(length)).zip(scales);
    rows.fold((0.0, 0.0), |(signal, noise), ((row, integers), &scale)| {
        let error = |(&v, &q): (&f32, &i8)| (f64::from(v) - f64::from(q) / f64::from(scale)).powi(2);
        (
            signal + row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>(),
            noise + row.iter().zip(integers).map(error).sum::<f64>(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_away_from_zero() {
        let values = [0.5, -0.5, 1.5, -2.5, 126.5, -127.0, 0.0, 0.49];
        assert_eq!(rounded(&values, &[1.0]), [1, -1, 2, -3, 127, -127, 0, 0]);
        assert_eq!(row_scales(&[127.0, -254.0, 0.0, 1e-30], 2), [0.5, 1.0]);
        assert_eq!(rounded(&[127.0, -254.0, 0.0, 1e-30], &[0.5, 1.0]), [64, -127, 0, 0]);
    }
}
