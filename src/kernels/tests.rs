//! Every kernel, at every instruction-set level, against its definition written naively.

use super::*;
use proptest::prelude::*;
use rayon::prelude::*;

/// Runs a check of a kernel as dispatched on this machine, and at each level.
macro_rules! for_each_level {
    ($check:ident, $dispatched:ident, $kernel:ident $(, $t:ty)?) => {
        $check($dispatched::<$($t,)? Uniform>, "dispatched");
        $check(levels::baseline::$kernel$(::<$t>)?, "baseline");
        $check(levels::avx2::$kernel$(::<$t>)?, "AVX2");
        $check(levels::avx512::$kernel$(::<$t>)?, "AVX-512");
    };
}

/// Leaves tails of every kind around the 16 and 32 lanes.
const LENGTHS: [usize; 12] = [0, 1, 3, 15, 16, 17, 31, 32, 33, 100, 257, 5000];

/// Boundary values and pseudo-random ones over all magnitudes and bit patterns.
fn values(n: usize) -> Vec<f32> {
    let special = [
        0.0,
        -0.0,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        126.5,
        127.5,
        -127.5,
        -128.5,
        254.5,
        255.5,
        1e-45,
        -1e-40,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
        0.499_999_97,
        8_388_609.0,
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let random = std::iter::repeat_with(|| match next() % 3 {
        0 => f32::from_bits(next()),
        1 => (next() % 1024) as f32 / 2.0 - 256.0,
        _ => (next() as f32 / u32::MAX as f32 - 0.5) * 300.0,
    });
    random.take(n / 2).collect::<Vec<_>>().into_iter().chain(special.into_iter().cycle()).take(n).collect()
}

/// `(scale, zero_point, qmin, qmax)` for the integers of `T`.
fn grids<T: QuantInt>() -> Vec<(f32, i32, i32, i32)> {
    let scales = [1.0, 0.1, 0.5, 3.7e-3, 1e-38, 1e-42, 1e30, f32::MAX];
    let mid = (T::MIN + T::MAX) / 2;
    let codes = [
        (T::MIN, T::MIN, T::MAX),
        (mid, T::MIN, T::MAX),
        (T::MAX, T::MIN, T::MAX),
        (mid, T::MIN + 1, T::MAX),
    ];
    scales.iter().flat_map(|&s| codes.map(|(zp, lo, hi)| (s, zp, lo, hi))).collect()
}

#[inline(always)]
fn naive_quantize(v: f32, scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> i32 {
    let rounded = f64::from(v / scale).round_ties_even() + f64::from(zero_point);
    if rounded.is_nan() { qmin } else { rounded.clamp(qmin.into(), qmax.into()) as i32 }
}

fn naive_fake_quantize(v: f32, scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> f32 {
    (naive_quantize(v, scale, zero_point, qmin, qmax) - zero_point) as f32 * scale
}

type Kernel<I, O> = fn(&[I], Uniform, &mut [O]);

#[test]
fn quantize_matches_definition() {
    fn check<T: QuantInt + Default>(kernel: Kernel<f32, T>, level: &str) {
        for (n, (scale, zp, qmin, qmax)) in
            LENGTHS.into_iter().flat_map(|n| grids::<T>().into_iter().map(move |g| (n, g)))
        {
            let x = values(n);
            let mut q = vec![T::default(); n];
            kernel(&x, Uniform::new(scale, zp, qmin, qmax), &mut q);
            for (&v, q) in x.iter().zip(q) {
                assert_eq!(
                    q.to_i32(),
                    naive_quantize(v, scale, zp, qmin, qmax),
                    "{level}: {v:?} / {scale} + {zp}"
                );
            }
        }
    }
    for_each_level!(check, quantize_steps, quantize, i8);
    for_each_level!(check, quantize_steps, quantize, u8);
    for_each_level!(check, quantize_steps, quantize, i16);
    for_each_level!(check, quantize_steps, quantize, u16);
}

#[test]
fn quantize_saturates_and_sends_nan_to_the_minimum() {
    // What ONNX Runtime's QuantizeLinear answers on CPU, for arrays short and long.
    let x = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY].repeat(9);
    let (mut signed, mut unsigned) = (vec![0_i8; 36], vec![0_u8; 36]);
    quantize(&x, 0.1, 3, &mut signed);
    quantize(&x, 0.1, 100, &mut unsigned);
    assert_eq!(signed, [-128, -128, 127, -128].repeat(9));
    assert_eq!(unsigned, [0, 0, 255, 0].repeat(9));
}

#[test]
fn dequantize_matches_definition() {
    fn check(kernel: Kernel<i8, f32>, level: &str) {
        let q: Vec<i8> = (i8::MIN..=i8::MAX).chain(0..5).collect();
        for zp in [-128, 0, 5, 127] {
            let mut y = vec![0.0; q.len()];
            kernel(&q, Uniform::new(0.3, zp, -128, 127), &mut y);
            let expected: Vec<f32> = q.iter().map(|&q| (i32::from(q) - zp) as f32 * 0.3).collect();
            assert_eq!(y, expected, "{level}");
        }
    }
    for_each_level!(check, dequantize_steps, dequantize, i8);
}

#[test]
fn fake_quantize_matches_definition() {
    fn check(kernel: Kernel<f32, f32>, level: &str) {
        for (scale, zp, qmin, qmax) in grids::<i8>() {
            let x = values(333);
            let mut y = vec![0.0; x.len()];
            kernel(&x, Uniform::new(scale, zp, qmin, qmax), &mut y);
            for (v, y) in x.into_iter().zip(y) {
                let expected = naive_fake_quantize(v, scale, zp, qmin, qmax);
                assert_eq!(y.to_bits(), expected.to_bits(), "{level}: {v:?} / {scale} + {zp}");
            }
        }
    }
    for_each_level!(check, fake_quantize_steps, fake_quantize);
}

#[test]
fn quantization_error_is_the_same_at_every_level() {
    for (n, (scale, zp, qmin, qmax)) in LENGTHS.into_iter().zip(grids::<u8>()) {
        let x: Vec<f32> = values(n).into_iter().filter(|v| v.is_finite()).collect();
        let squared =
            |&v: &f32| (f64::from(naive_fake_quantize(v, scale, zp, qmin, qmax)) - f64::from(v)).powi(2);
        let expected: f64 = x.iter().map(squared).sum();
        let found = quantization_error(&x, scale, zp, qmin, qmax);
        let levels = [
            levels::baseline::quantization_error,
            levels::avx2::quantization_error,
            levels::avx512::quantization_error,
        ];
        for level in levels {
            assert_eq!(found.to_bits(), level(&x, Uniform::new(scale, zp, qmin, qmax)).to_bits());
        }
        assert!((found - expected).abs() <= 1e-12 * expected, "{found} {expected}");
    }
}

#[test]
fn extremes_match_definition() {
    for n in LENGTHS {
        let x = values(n);
        let numbers = || x.iter().copied().filter(|v| !v.is_nan());
        let expected = numbers().reduce(f32::min).zip(numbers().reduce(f32::max));
        let largest = numbers().map(f32::abs).fold(0.0, f32::max);
        let least = numbers().map(f32::abs).filter(|&v| v > 0.0).fold(f32::INFINITY, f32::min);
        for (level, pair, magnitude) in [
            ("dispatched", min_max(&x), abs_max(&x)),
            ("baseline", levels::baseline::min_max(&x), levels::baseline::abs_max(&x)),
            ("AVX2", levels::avx2::min_max(&x), levels::avx2::abs_max(&x)),
            ("AVX-512", levels::avx512::min_max(&x), levels::avx512::abs_max(&x)),
        ] {
            assert_eq!((pair, magnitude), (expected, largest), "{level}, {n} values");
        }
        assert_eq!(extremes(&x), (expected, least));
        assert_eq!(portable::extremes(&x), (expected, least));
    }
    assert_eq!(min_max(&[f32::NAN; 40]), None);
    assert_eq!(min_max(&[-0.0; 40]).map(|(lo, hi)| (lo.to_bits(), hi.to_bits())), Some((0, 0)));
}

fn new_table() -> Box<BinTable> {
    vec![0; BINS].try_into().expect("BINS counters")
}

#[test]
fn bins_match_definition() {
    for n in LENGTHS {
        let x = values(n);
        let (mut table, mut fused, mut expected) = (new_table(), new_table(), new_table());
        for v in &x {
            let bin = if v.abs() < f32::MIN_POSITIVE { 0 } else { v.to_bits() >> 16 };
            expected[bin as usize] += 1;
        }
        count_bins(&x, &mut table);
        assert_eq!(observe(&x, &mut fused), min_max(&x));
        assert!(table == expected && fused == expected, "{n} values");
    }
}

/// Long enough for the lanes to be used.
#[test]
fn long_slices_are_counted_like_short_ones() {
    let values: [fn(u32) -> f32; 9] = [
        |_| 0.0,
        |_| -0.0,
        |_| f32::NAN,
        |_| -1.5,
        |i| f32::from_bits(i.wrapping_mul(0x9E37_79B9)),
        |i| if i % 3 == 0 { 0.0 } else { (i % 1000) as f32 * 0.01 },
        |i| if i % 5 == 0 { -0.0 } else { -1e-3 - i as f32 },
        |i| if i % 7 == 0 { f32::NAN } else { (i % 100) as f32 },
        |i| if i == 7 { f32::NEG_INFINITY } else { i as f32 * 1e-41 - 1e-39 },
    ];
    for n in [lanes::WORTHWHILE - 1, lanes::WORTHWHILE, 20 * lanes::WORTHWHILE + 3] {
        for (which, value) in values.iter().enumerate() {
            let x: Vec<f32> = (0..n as u32).map(value).collect();
            let (mut found, mut expected) = (new_table(), new_table());
            for _ in 0..2 {
                count_bins(&x, &mut expected);
                assert_eq!(observe(&x, &mut found), min_max(&x));
            }
            assert!(found == expected, "{n} values of kind {which}");
        }
    }
}

/// [`naive_quantize`] of many, several times as quick with AVX2, which has an instruction that rounds.
#[multiversion(targets("x86_64+avx2"))]
fn naive_quantize_all<T: QuantInt>(
    x: &[f32],
    scale: f32,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
    out: &mut [T],
) {
    for (q, &v) in out.iter_mut().zip(x) {
        *q = T::from_i32(naive_quantize(v, scale, zero_point, qmin, qmax));
    }
}

/// `(scale, zero_point, qmin, qmax)` of every kind.
fn all_grids() -> Vec<(f32, i32, i32, i32)> {
    let middles = [1.0, 0.1, 1.0 / 3.0, 0.003_921_57, 7.3e-20, 1.234_567_9e20];
    let edges = [f32::MIN_POSITIVE, 1e-40, f32::from_bits(1), 2.0_f32.powi(126), 2.0_f32.powi(127), f32::MAX];
    let grids = middles.map(|s| [(s, 0, -128, 127), (s, 255, 0, 255)]).into_iter().flatten();
    let grids = grids.chain(edges.map(|s| (s, -128, -128, 127))).chain([(0.0123, 5, -8, 7)]);
    grids.chain([(1e-3, 0, -32768, 32767), (0.7, 65535, 0, 65535)]).collect()
}

/// Codes and reals.
type Level<T> = (Kernel<f32, T>, Kernel<f32, f32>);

/// As dispatched, and at each level.
fn levels_of<T: QuantInt>() -> [Level<T>; 4] {
    [
        (quantize_steps, fake_quantize_steps),
        (levels::baseline::quantize, levels::baseline::fake_quantize),
        (levels::avx2::quantize, levels::avx2::fake_quantize),
        (levels::avx512::quantize, levels::avx512::fake_quantize),
    ]
}

/// Checks the first `levels` of the levels on every `step`-th bit pattern.
fn check_patterns(step: usize, levels: usize, grid: (f32, i32, i32, i32)) {
    match grid {
        (.., -128..=0, 0..=127) => check_patterns_of::<i8>(step, levels, grid),
        (.., 0, 255) => check_patterns_of::<u8>(step, levels, grid),
        (.., 0, 65535) => check_patterns_of::<u16>(step, levels, grid),
        _ => check_patterns_of::<i16>(step, levels, grid),
    }
}

fn check_patterns_of<T: QuantInt + Default>(
    step: usize,
    levels: usize,
    (scale, zp, qmin, qmax): (f32, i32, i32, i32),
) {
    /// So many fit into the cache.
    const MANY: usize = 1 << 12;
    let steps = Uniform::new(scale, zp, qmin, qmax);
    (0..(1_usize << 32).div_ceil(step * MANY)).into_par_iter().for_each(|block| {
        let start = block * step * MANY;
        let bits = (start..(start + step * MANY).min(1 << 32)).step_by(step);
        let x: Vec<f32> = bits.map(|bits| f32::from_bits(bits as u32)).collect();
        let (mut expected, mut reals) = (vec![T::default(); x.len()], vec![0.0; x.len()]);
        let (mut found, mut y) = (vec![T::default(); x.len()], vec![0.0; x.len()]);
        naive_quantize_all(&x, scale, zp, qmin, qmax, &mut expected);
        for (real, q) in reals.iter_mut().zip(&expected) {
            *real = (q.to_i32() - zp) as f32 * scale;
        }
        for (quantize, fake_quantize) in &levels_of::<T>()[..levels] {
            quantize(&x, steps, &mut found);
            assert!(found == expected, "from {start:#x} on, scale {scale}, zero point {zp}");
            fake_quantize(&x, steps, &mut y);
            let differs = y.iter().zip(&reals).fold(false, |any, (a, b)| any | (a.to_bits() != b.to_bits()));
            assert!(!differs, "from {start:#x} on, scale {scale}, zero point {zp}, reals");
        }
    });
}

#[test]
fn patterns_all_over_match_the_definition() {
    for grid in all_grids() {
        check_patterns(40_009, 4, grid);
    }
}

/// As dispatched, at the baseline, and with AVX2, which is not what is dispatched where there is AVX-512.
#[test]
#[ignore = "takes minutes: make exhaustive"]
fn every_pattern_matches_the_definition() {
    let began = std::time::Instant::now();
    for grid in all_grids() {
        check_patterns(1, 3, grid);
        let ((scale, zp, qmin, qmax), seconds) = (grid, began.elapsed().as_secs());
        eprintln!("scale {scale:e}, zero point {zp}, {qmin}…{qmax}: all as defined, {seconds} s");
    }
}

proptest! {
    #[test]
    fn reciprocal_and_division_agree_near_the_middles(
        scale in 1.2e-38_f32..8e37,
        places in prop::collection::vec((-256..=256_i32, -40..=40_i32), 64),
    ) {
        let near = |(k, ulps): &(i32, i32)| {
            let middle = ((f64::from(*k) + 0.5) * f64::from(scale)) as f32;
            f32::from_bits(middle.to_bits().saturating_add_signed(*ulps))
        };
        let x: Vec<f32> = places.iter().map(near).collect();
        let mut q = vec![0_i8; x.len()];
        quantize(&x, scale, 3, &mut q);
        for (v, q) in x.into_iter().zip(q) {
            prop_assert_eq!(i32::from(q), naive_quantize(v, scale, 3, -128, 127), "{} / {}", v, scale);
        }
    }

    #[test]
    fn quantize_matches_definition_anywhere(
        bits in prop::collection::vec(any::<u32>(), 0..70),
        scale in f32::MIN_POSITIVE..f32::MAX,
        zp in -128..=127,
    ) {
        let x: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).chain([scale * 0.5, scale * 1.5, scale * -127.5]).collect();
        let mut q = vec![0_i8; x.len()];
        quantize(&x, scale, zp, &mut q);
        for (v, q) in x.into_iter().zip(q) {
            prop_assert_eq!(i32::from(q), naive_quantize(v, scale, zp, -128, 127), "{} / {} + {}", v, scale, zp);
        }
    }
}

#[test]
fn extents_of_two_rows() {
    for count in [1, 31, 32, 77] {
        let value = |i: usize| ((i * 7919) % 101) as f32 - 50.0;
        let [even, odd] = [0, 1000].map(|first| (first..first + count).map(value).collect::<Vec<f32>>());
        let (mut sizes, mut sums) = (vec![20.0; count], vec![30.0; count]);
        let squares = raise_extents(&mut sizes, &mut sums, &even, &odd);
        for i in 0..count {
            assert_eq!(sizes[i], even[i].abs().max(odd[i].abs()).max(20.0));
            assert_eq!(sums[i], (even[i] + odd[i]).abs().max(30.0));
        }
        assert_eq!(squares, sum_of_squares(&even) + sum_of_squares(&odd));
    }
}
