//! Weights rounded so that the results of a layer change least, not the weights themselves.
//!
//! With the weights w of one output channel, integers q on scales s and eₖ = sₖ qₖ − wₖ, the mean square error of the
//! results is eᵀ H e, H being the [second moments](super::inputs) of the inputs. Rounding to the nearest makes every
//! |eₖ| least; but errors of inputs that go together can cancel. From there, coordinate descent: a step of d at k, to the
//! next integer in use, changes the error by d² Hₖₖ + 2 d gₖ with g = H e, and is taken if that is negative, until none is
//! or after [`PASSES`].
//! Each step makes the error smaller, so the result is never worse than the nearest integers. (Nagel et al. 2020 state
//! the problem and relax it; Nair and Suggala 2024 descend by coordinates. GPTQ needs a Cholesky factor and visits each
//! weight once.)

use multiversion::multiversion;

/// Passes over the weights of a channel.
const PASSES: usize = 8;

/// Moves the integers `q` of one channel, whose exact values are `w` and whose units are `scale`, to where xᵀ(s q − w)
/// varies less for inputs x with the second moments `h`, row by row. `next(q, k, up)` is what the integer k may become when
/// it grows, or falls.
///
/// Returns the error before and after.
pub(crate) fn descend(
    (w, scale): (&[f32], &[f32]),
    q: &mut [i8],
    h: &[f32],
    next: impl Fn(&[i8], usize, bool) -> Option<i8>,
) -> (f64, f64) {
    let width = w.len();
    let mut g = vec![0_f32; width];
    for (k, row) in h.chunks_exact(width.max(1)).enumerate() {
        add(&mut g, row, f32::from(q[k]) * scale[k] - w[k]);
    }
    let error = |q: &[i8], g: &[f32]| -> f64 {
        let errors = q.iter().zip(scale).zip(w).map(|((&q, s), w)| f32::from(q) * s - w);
        errors.zip(g).map(|(e, g)| f64::from(e * g)).sum()
    };
    let before = error(q, &g);
    for _ in 0..PASSES {
        let mut moved = false;
        for k in 0..width {
            let diagonal = h[k * width + k];
            let Some(value) = next(q, k, g[k] <= 0.0) else { continue };
            let step = (f32::from(value) - f32::from(q[k])) * scale[k];
            // Some slack, or rounding errors of g could move an integer to and fro.
            if 2.0 * g[k].abs() <= diagonal * step.abs() * 1.000_1 {
                continue;
            }
            q[k] = value;
            add(&mut g, &h[k * width..][..width], step);
            moved = true;
        }
        if !moved {
            break;
        }
    }
    (before, error(q, &g))
}

#[multiversion(targets("x86_64+avx2"))]
fn add(sum: &mut [f32], row: &[f32], factor: f32) {
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To the next integer, whatever it is.
    fn free(q: &[i8], k: usize, up: bool) -> Option<i8> {
        q[k].checked_add(if up { 1 } else { -1 })
    }

    /// Inputs that go together, their second moments, and weights.
    fn problem(width: usize) -> (Vec<f32>, Vec<f32>) {
        let noise = |seed: usize| ((seed * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
        let rows: Vec<Vec<f32>> = (0..64)
            .map(|r| (0..width).map(|k| noise(r) + 0.3 * noise(r * width + k + 77)).collect())
            .collect();
        let mut h = vec![0.0; width * width];
        for row in &rows {
            for i in 0..width {
                add(&mut h[i * width..][..width], row, row[i] / 64.0);
            }
        }
        (h, (0..width).map(|k| 40.0 * noise(k + 5)).collect())
    }

    fn error(t: &[f32], q: &[i8], h: &[f32]) -> f64 {
        let e: Vec<f64> = q.iter().zip(t).map(|(&q, &t)| f64::from(q) - f64::from(t)).collect();
        let n = t.len();
        (0..n * n).map(|i| e[i / n] * f64::from(h[i]) * e[i % n]).sum()
    }

    fn nearest(t: &[f32]) -> Vec<i8> {
        t.iter().map(|t| t.round_ties_even() as i8).collect()
    }

    #[test]
    fn errors_cancel() {
        let (mut all_before, mut all_after) = (0.0, 0.0);
        for width in 20..60 {
            let (h, t) = problem(width);
            let mut q = nearest(&t);
            let (before, after) = descend((&t, &vec![1.0; t.len()]), &mut q, &h, free);
            let (exact_before, exact_after) = (error(&t, &nearest(&t), &h), error(&t, &q, &h));
            assert!((before - exact_before).abs() < 1e-2 * exact_before, "{before} {exact_before}");
            assert!((after - exact_after).abs() < 1e-2 * exact_before, "{after} {exact_after}");
            assert!(exact_after <= exact_before, "{exact_before} {exact_after}");
            (all_before, all_after) = (all_before + exact_before, all_after + exact_after);
        }
        assert!(all_after < 0.5 * all_before, "{all_before} {all_after}");
    }

    #[test]
    fn as_good_as_trying_everything_in_two_dimensions() {
        let h = [1.0, 0.9, 0.9, 1.0];
        let t = [0.4, 0.4];
        let mut q = nearest(&t);
        descend((&t, &vec![1.0; t.len()]), &mut q, &h, free);
        let all = (-3..=3_i8).flat_map(|a| (-3..=3_i8).map(move |b| [a, b]));
        let best = all.map(|q| error(&t, &q, &h)).fold(f64::INFINITY, f64::min);
        assert!((error(&t, &q, &h) - best).abs() < 1e-6, "{q:?} {best}");
    }

    /// So that no level depends on the processor.
    #[test]
    fn every_instruction_set_adds_alike() {
        for width in [1, 7, 8, 33, 100] {
            let (h, t) = problem(width);
            let mut sums = t.clone();
            add(&mut sums, &h[..width], 0.123);
            for k in 0..width {
                let product = std::hint::black_box(0.123 * h[k]);
                assert_eq!(sums[k].to_bits(), (t[k] + product).to_bits(), "{width} {k}");
            }
        }
    }

    #[test]
    fn what_is_not_allowed_stays() {
        let (h, t) = problem(20);
        let mut q = nearest(&t);
        descend((&t, &vec![1.0; t.len()]), &mut q, &h, |_, _, _| None);
        assert_eq!(q, nearest(&t));
    }

    #[test]
    fn independent_inputs_are_rounded_to_the_nearest() {
        let (_, t) = problem(12);
        let mut h = vec![0.0; 144];
        (0..12).for_each(|k| h[k * 13] = 1.0 + k as f32);
        let mut q = nearest(&t);
        descend((&t, &vec![1.0; t.len()]), &mut q, &h, free);
        assert_eq!(q, nearest(&t));
    }
}
