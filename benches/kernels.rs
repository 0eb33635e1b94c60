//! The kernels at every instruction-set level, on one thread: `cargo bench --bench kernels`.
//!
//! Beside them, what memory does at best: `copy` of as many bytes as quantizing reads and writes, and `sum`, which only
//! reads. `make bench` has the same from Python, beside other tools.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustq::kernels::levels::{self, Uniform};
use rustq::kernels::{self, BINS, BinTable};

/// Elements of 1 MiB, which stays in the cache.
const SMALL: usize = 1 << 18;
const SCALE: f32 = 0.021;

/// Nearly Gaussian, and with `relu` nothing below 0.
fn values(n: usize, relu: bool) -> Vec<f32> {
    let mut state = 0x9E37_79B9_u32;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    let lowest = if relu { 0.0 } else { f32::NEG_INFINITY };
    (0..n).map(|_| (0..6).map(|_| uniform()).sum::<f32>().max(lowest) * 1.4).collect()
}

fn sum(x: &[f32]) -> u32 {
    x.iter().fold(0, |sum, v| sum ^ v.to_bits())
}

fn table() -> Box<BinTable> {
    vec![0; BINS].try_into().expect("BINS counters")
}

macro_rules! at_each_level {
    ($group:ident, $name:literal, |$level:ident| $run:expr) => {{
        at_each_level!(@ $group, $name, $level, $run, baseline avx2 avx512);
    }};
    (@ $group:ident, $name:literal, $level:ident, $run:expr, $($each:ident)*) => {$(
        $group.bench_function(concat!($name, "/", stringify!($each)), |bencher| {
            use levels::$each as $level;
            bencher.iter(|| $run);
        });
    )*};
}

fn in_cache(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("1 MiB");
    group.throughput(Throughput::Elements(SMALL as u64));
    let x = values(SMALL, false);
    let x = black_box(&x[..]);
    let steps = Uniform::new(SCALE, 3, -128, 127);
    let (mut q, mut y) = (vec![0_i8; SMALL], vec![0.0_f32; SMALL]);
    let bytes = 5 * SMALL / 2;
    let (from, mut to) = (vec![1_u8; bytes], vec![0_u8; bytes]);
    group.bench_function("copy", |bencher| {
        bencher.iter(|| black_box(&mut to[..]).copy_from_slice(black_box(&from)))
    });
    group.bench_function("sum", |bencher| bencher.iter(|| sum(black_box(x))));
    at_each_level!(group, "quantize", |level| level::quantize(x, steps, &mut q));
    at_each_level!(group, "dequantize", |level| level::dequantize(&q, steps, &mut y));
    at_each_level!(group, "fake_quantize", |level| level::fake_quantize(x, steps, &mut y));
    at_each_level!(group, "quantization_error", |level| level::quantization_error(x, steps));
    at_each_level!(group, "min_max", |level| level::min_max(black_box(x)));
    at_each_level!(group, "abs_max", |level| level::abs_max(black_box(x)));
    for relu in [false, true] {
        let (x, mut table) = (values(SMALL, relu), table());
        let name = if relu { "histogram/ReLU" } else { "histogram/Gaussian" };
        group.bench_function(name, |bencher| bencher.iter(|| kernels::observe(&x, &mut table)));
    }
    group.finish();
}

criterion_group!(benches, in_cache);
criterion_main!(benches);
