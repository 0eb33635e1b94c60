//! Distributions that calibration meets, for tests.

/// Deterministic uniform numbers in (0, 1).
fn uniform() -> impl FnMut() -> f64 {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }
}

/// `n` values of each distribution, by name.
pub fn all(n: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut u = uniform();
    let mut gauss = move || (-2.0 * u().ln()).sqrt() * (std::f64::consts::TAU * u()).cos();
    let normal: Vec<f64> = (0..n).map(|_| gauss()).collect();
    let map = |f: &dyn Fn(f64) -> f64| normal.iter().map(|&g| f(g) as f32).collect::<Vec<f32>>();
    vec![
        ("gaussian", map(&|g| g)),
        ("relu", map(&|g| g.max(0.0))),
        ("relu6", map(&|g| (g * 4.0).clamp(0.0, 6.0))),
        ("shifted", map(&|g| g + 2.0)),
        ("negative", map(&|g| -g.abs() - 1.0)),
        ("log-normal", map(&|g| (1.5 * g).exp())),
        ("heavy tails", map(&|g| g.signum() * ((1.5 * g.abs()).exp() - 1.0))),
        ("bimodal", map(&|g| 0.3 * g + 5.0 * g.signum())),
        ("gelu", map(&|g| 3.0 * g / (1.0 + (-5.1 * g).exp()))),
        ("tiny", map(&|g| g * 1e-30)),
        ("huge", map(&|g| g * 1e30)),
    ]
}
