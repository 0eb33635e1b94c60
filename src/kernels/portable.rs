//! The loops themselves, inlined into each clone. See the public functions for what they compute.
//!
//! Two habits let them vectorise on every target: `if a < b { a } else { b }` rather than `f32::min` (one instruction
//! instead of a NaN dance), and arrays of lanes over `as_chunks` for reductions, which also fix the order of addition.

use super::absmax::scale_of;
use super::branchless::{ROUNDER, larger, smaller};
use super::instructions::{Instructions, LANES};
use super::{BinTable, QuantInt, stream};

/// Scales and zero points of the elements of a slice, as the loops want them.
pub trait Steps: Copy {
    /// Of the elements from `at` on.
    fn scales<const N: usize>(self, at: usize) -> [f32; N];
    /// Of the elements from `at` on.
    fn zero_points<const N: usize>(self, at: usize) -> [i32; N];
    /// Smallest integer.
    fn qmin(self) -> i32;
    /// Largest integer.
    fn qmax(self) -> i32;
    /// How to do without a division.
    fn product(self) -> Product;
    /// Of the scales of the elements from `at` on.
    fn reciprocals<const N: usize>(self, at: usize) -> [f32; N];
    /// [`Product::offset`] of the elements from `at` on.
    fn offsets<const N: usize>(self, at: usize) -> [f32; N];
}

/// The integers a value may round to, relative to the zero point, as floats.
#[derive(Clone, Copy)]
struct Limits {
    lo: f32,
    hi: f32,
}

impl Limits {
    #[inline(always)]
    fn new(zero_point: i32, qmin: i32, qmax: i32) -> Self {
        let (lo, hi) = (qmin - zero_point, qmax - zero_point);
        debug_assert!(lo <= hi && lo > -(1 << 22) && hi < 1 << 22);
        Self { lo: lo as f32, hi: hi as f32 }
    }

    /// Clamping to integers before rounding cannot change the result. NaN goes to `lo`.
    #[inline(always)]
    fn clamp(self, v: f32) -> f32 {
        smaller(larger(v, self.lo), self.hi)
    }

    /// The integer nearest to the clamped quotient.
    #[inline(always)]
    fn divide(self, v: f32, scale: f32, zero_point: i32) -> i32 {
        (self.clamp(v / scale) + ROUNDER).to_bits() as i32 - (ROUNDER.to_bits() as i32 - zero_point)
    }
}

/// How to find the integer nearest to `x / scale`, plus the zero point, by a product.
///
/// ONNX divides, and a division takes several times a multiplication. With `r` the reciprocal of the scale, `x·r` and
/// `x / scale` as rounded to f32 differ by at most `1.5 · 2⁻²³ · |x / scale|`: half a unit in the last place each for the
/// reciprocal, the product and the quotient. Up to 256 that is less than `¾ u` with `u = 2⁻¹⁴`.
///
/// Floats from 512 to 1024 are the multiples of `u`. So adding `768 + zero_point + ½ + 2u` rounds the product to a multiple
/// of `u`, and what its bits hold above the lowest 14 is the integer below the sum: `x / scale + ½` rounded down, if in
/// doubt of at most `¾ u + ½ u`, of which the `2u` are in the middle of the fractions `0…4u`. Only those may round to another
/// integer, or be a tie: one in 4096. Then the elements nearby are divided.
///
/// Whatever lies below the smallest integer, and NaN, is raised to its fraction ¼, which is beyond doubt; what lies above the
/// largest is left to integers.
#[derive(Clone, Copy)]
pub struct Product {
    pub(super) lo: f32,
    /// The fraction bits that are not all 0 where the sum is beyond doubt; none if that is never so.
    pub(super) fraction: i32,
}

/// [`f32::is_normal`] without a branch, so that many are looked at together.
#[inline(always)]
fn is_normal(v: f32) -> bool {
    (v.abs() >= f32::MIN_POSITIVE) & (v.abs() < f32::INFINITY)
}

/// Number of bits below 1 in floats from 512 to 1024.
pub(super) const FRACTION: i32 = 14;

/// The middle of these floats, where the integer 0 is.
pub(super) const MIDDLE: f32 = 768.0;

impl Product {
    /// For integers from `qmin` on; never beyond doubt unless `exact_enough`.
    #[inline(always)]
    fn new(qmin: i32, exact_enough: bool) -> Self {
        let fraction = if exact_enough { (1 << FRACTION) - 4 } else { 0 };
        Self { lo: MIDDLE + qmin as f32 + 0.25, fraction }
    }

    /// Whether the bound on the error holds.
    #[inline(always)]
    fn is_exact_enough(scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> bool {
        let fits = |q: i32| (-255..=255).contains(&q);
        let fits = fits(qmin) & fits(qmax) & fits(qmin - zero_point) & fits(qmax - zero_point);
        fits & is_normal(scale) & is_normal(1.0 / scale)
    }

    /// What is added to a product.
    #[inline(always)]
    fn offset(zero_point: i32) -> f32 {
        const UNIT: f32 = 1.0 / (1 << FRACTION) as f32;
        MIDDLE + zero_point as f32 + 0.5 + 2.0 * UNIT
    }

    /// The sum less [`MIDDLE`], of [`FRACTION`] bits below 1; of no meaning where it was never exact enough.
    #[inline(always)]
    fn fixed(self, by: impl Instructions, v: f32, reciprocal: f32, offset: f32) -> i32 {
        larger(by.multiply_add(v, reciprocal, offset), self.lo).to_bits().wrapping_sub(MIDDLE.to_bits())
            as i32
    }

    /// Whether one is in doubt.
    #[inline(always)]
    fn doubts<const N: usize>(self, fixed: &[i32; N]) -> bool {
        let mut least = [i32::MAX; WIDTH];
        // Over an iterator it is not made vectors of, nor is what goes before it: five times as slow.
        #[allow(clippy::needless_range_loop)]
        for i in 0..N {
            let fraction = fixed[i] & self.fraction;
            least[i % WIDTH] = if fraction < least[i % WIDTH] { fraction } else { least[i % WIDTH] };
        }
        let mut any = false;
        for fraction in least {
            any |= fraction == 0;
        }
        any
    }
}

/// Numbers in a vector of AVX-512, or in two of AVX2.
const WIDTH: usize = 16;

/// The same scale and zero point for a whole slice.
#[derive(Clone, Copy)]
pub struct Uniform {
    scale: f32,
    reciprocal: f32,
    zero: Shared,
    qmin: i32,
    qmax: i32,
    product: Product,
}

impl Uniform {
    /// Of these integers, `qmin..=qmax`.
    #[inline(always)]
    pub fn new(scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> Self {
        let product = Product::new(qmin, Product::is_exact_enough(scale, zero_point, qmin, qmax));
        Self { scale, reciprocal: 1.0 / scale, zero: Shared::new(zero_point), qmin, qmax, product }
    }
}

impl Steps for Uniform {
    #[inline(always)]
    fn scales<const N: usize>(self, _: usize) -> [f32; N] {
        [self.scale; N]
    }

    #[inline(always)]
    fn zero_points<const N: usize>(self, at: usize) -> [i32; N] {
        self.zero.points(at)
    }

    #[inline(always)]
    fn qmin(self) -> i32 {
        self.qmin
    }

    #[inline(always)]
    fn qmax(self) -> i32 {
        self.qmax
    }

    #[inline(always)]
    fn product(self) -> Product {
        self.product
    }

    #[inline(always)]
    fn reciprocals<const N: usize>(self, _: usize) -> [f32; N] {
        [self.reciprocal; N]
    }

    #[inline(always)]
    fn offsets<const N: usize>(self, at: usize) -> [f32; N] {
        self.zero.offsets(at)
    }
}

/// Zero points of the elements of a slice.
pub trait Zeros: Copy {
    /// Of the elements from `at` on.
    fn points<const N: usize>(self, at: usize) -> [i32; N];
    /// [`Product::offset`] of the elements from `at` on.
    fn offsets<const N: usize>(self, at: usize) -> [f32; N];
}

/// The same for all, as of symmetric weights: nothing to load.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    point: i32,
    offset: f32,
}

impl Shared {
    #[inline(always)]
    fn new(point: i32) -> Self {
        Self { point, offset: Product::offset(point) }
    }

    /// Of zero points that are all the same.
    fn of(points: &[i32]) -> Option<Self> {
        let &first = points.first()?;
        let differing = points.iter().fold(0, |differing, &point| differing | (point ^ first));
        (differing == 0).then(|| Self::new(first))
    }
}

impl Zeros for Shared {
    #[inline(always)]
    fn points<const N: usize>(self, _: usize) -> [i32; N] {
        [self.point; N]
    }

    #[inline(always)]
    fn offsets<const N: usize>(self, _: usize) -> [f32; N] {
        [self.offset; N]
    }
}

/// One for each.
#[derive(Clone, Copy)]
pub(super) struct Own<'a> {
    points: &'a [i32],
    offsets: &'a [f32],
}

impl Zeros for Own<'_> {
    #[inline(always)]
    fn points<const N: usize>(self, at: usize) -> [i32; N] {
        from(self.points, at)
    }

    #[inline(always)]
    fn offsets<const N: usize>(self, at: usize) -> [f32; N] {
        from(self.offsets, at)
    }
}

/// A scale for each element.
#[derive(Clone, Copy)]
pub struct Each<'a, Z> {
    scale: &'a [f32],
    reciprocal: &'a [f32],
    zeros: Z,
    qmin: i32,
    qmax: i32,
    product: Product,
}

#[inline(always)]
fn from<T: Copy, const N: usize>(values: &[T], at: usize) -> [T; N] {
    *values[at..].first_chunk().expect("as many as elements")
}

impl<Z: Zeros> Steps for Each<'_, Z> {
    #[inline(always)]
    fn scales<const N: usize>(self, at: usize) -> [f32; N] {
        from(self.scale, at)
    }

    #[inline(always)]
    fn zero_points<const N: usize>(self, at: usize) -> [i32; N] {
        self.zeros.points(at)
    }

    #[inline(always)]
    fn qmin(self) -> i32 {
        self.qmin
    }

    #[inline(always)]
    fn qmax(self) -> i32 {
        self.qmax
    }

    #[inline(always)]
    fn product(self) -> Product {
        self.product
    }

    #[inline(always)]
    fn reciprocals<const N: usize>(self, at: usize) -> [f32; N] {
        from(self.reciprocal, at)
    }

    #[inline(always)]
    fn offsets<const N: usize>(self, at: usize) -> [f32; N] {
        self.zeros.offsets(at)
    }
}

/// What [`Each`] wants of the parameters of a tensor: worked out once for all elements that share them.
pub(super) struct Columns {
    scale: Vec<f32>,
    reciprocal: Vec<f32>,
    zero_point: Vec<i32>,
    offset: Vec<f32>,
    /// The zero point, if all elements have the same.
    pub(super) shared: Option<Shared>,
    qmin: i32,
    qmax: i32,
    product: Product,
}

impl Columns {
    pub(super) fn new(scale: Vec<f32>, zero_point: Vec<i32>, qmin: i32, qmax: i32) -> Self {
        let mut exact_enough = true;
        // To the end, whatever comes: that is made vectors of.
        for (&scale, &zero) in scale.iter().zip(&zero_point) {
            exact_enough &= Product::is_exact_enough(scale, zero, qmin, qmax);
        }
        let reciprocal = scale.iter().map(|scale| 1.0 / scale).collect();
        let offset = zero_point.iter().map(|&zero| Product::offset(zero)).collect();
        let (shared, product) = (Shared::of(&zero_point), Product::new(qmin, exact_enough));
        Self { scale, reciprocal, zero_point, offset, shared, qmin, qmax, product }
    }

    /// The zero points of neighbouring elements, the first of which has the parameters at this place.
    pub(super) fn own(&self, at: usize, length: usize) -> Own<'_> {
        let of = at..at + length;
        Own { points: &self.zero_point[of.clone()], offsets: &self.offset[of] }
    }

    /// The parameters of these elements.
    pub(super) fn part<Z: Zeros>(&self, at: usize, length: usize, zeros: Z) -> Each<'_, Z> {
        let of = at..at + length;
        Each {
            scale: &self.scale[of.clone()],
            reciprocal: &self.reciprocal[of],
            zeros,
            qmin: self.qmin,
            qmax: self.qmax,
            product: self.product,
        }
    }
}

/// The integers of the elements from `at` on above [`FRACTION`] other bits, if none is in doubt. NaN and what lies below the
/// smallest integer is that; what lies above [`Steps::qmax`] may be more.
#[inline(always)]
fn multiplied<const N: usize>(
    by: impl Instructions,
    x: &[f32; N],
    steps: impl Steps,
    at: usize,
) -> Option<[i32; N]> {
    let (reciprocal, offset) = (steps.reciprocals::<N>(at), steps.offsets::<N>(at));
    // Loops over indices: closures of `map` are functions of their own in builds without link-time optimization.
    let mut fixed = [0; N];
    for i in 0..N {
        fixed[i] = steps.product().fixed(by, x[i], reciprocal[i], offset[i]);
    }
    if steps.product().doubts(&fixed) { None } else { Some(fixed) }
}

/// The same by definition, whatever the elements.
#[inline(always)]
fn divided<const N: usize>(x: &[f32; N], steps: impl Steps, at: usize) -> [i32; N] {
    let (scale, zero_point) = (steps.scales::<N>(at), steps.zero_points::<N>(at));
    let mut fixed = [0; N];
    for i in 0..N {
        let limits = Limits::new(zero_point[i], steps.qmin(), steps.qmax());
        fixed[i] = limits.divide(x[i], scale[i], zero_point[i]) << FRACTION;
    }
    fixed
}

#[inline(always)]
fn fixed<const N: usize>(by: impl Instructions, x: &[f32; N], steps: impl Steps, at: usize) -> [i32; N] {
    match multiplied(by, x, steps, at) {
        Some(fixed) => fixed,
        None => divided(x, steps, at),
    }
}

/// The integers that [`multiplied`] and [`divided`] have above other bits.
#[inline(always)]
fn narrow<T: QuantInt, const N: usize>(fixed: [i32; N], most: T) -> [T; N] {
    let mut narrow = [T::zeroed(); N];
    for i in 0..N {
        let q = T::from_i32((fixed[i] >> FRACTION).clamp(T::MIN, T::MAX));
        narrow[i] = if q < most { q } else { most };
    }
    narrow
}

/// See [`Instructions::quantize`].
#[inline(always)]
pub(super) fn quantize_lanes<T: QuantInt, const N: usize>(
    by: impl Instructions,
    x: &[f32; N],
    steps: impl Steps,
    at: usize,
) -> Option<[T; N]> {
    #[allow(
        clippy::manual_map,
        reason = "closures are functions of their own without link-time optimization"
    )]
    match multiplied(by, x, steps, at) {
        Some(fixed) => Some(narrow(fixed, T::from_i32(steps.qmax()))),
        None => None,
    }
}

#[inline(always)]
pub(super) fn quantize<T: QuantInt>(by: impl Instructions, x: &[f32], steps: impl Steps, out: &mut [T]) {
    assert_eq!(x.len(), out.len());
    let most = T::from_i32(steps.qmax());
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (places, rest) = out.as_chunks_mut::<LANES>();
    for (i, (chunk, place)) in chunks.iter().zip(places).enumerate() {
        stream::read_ahead(chunk);
        let at = i * LANES;
        *place = match by.quantize(chunk, steps, at) {
            Some(codes) => codes,
            None => narrow(divided(chunk, steps, at), most),
        };
    }
    for (i, (v, place)) in tail.as_chunks::<1>().0.iter().zip(rest).enumerate() {
        [*place] = narrow(fixed(by, v, steps, chunks.len() * LANES + i), most);
    }
}

#[inline(always)]
pub(super) fn quantize_and_abs_max<T: QuantInt>(
    by: impl Instructions,
    x: &[f32],
    steps: Uniform,
    out: &mut [T],
    other: &[f32],
) -> f32 {
    /// So few elements of each take turns that memory is always asked for some.
    const TURN: usize = 128;
    assert!(x.len() == out.len() && x.len() == other.len());
    let mut max = 0.0;
    for ((x, out), other) in x.chunks(TURN).zip(out.chunks_mut(TURN)).zip(other.chunks(TURN)) {
        max = larger(abs_max(other), max);
        quantize(by, x, steps, out);
    }
    max
}

#[inline(always)]
pub(super) fn absmax_quantize_rows(by: impl Instructions, x: &[f32], scales: &mut [f32], out: &mut [i8]) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(scales.len()));
    let row = x.len() / scales.len();
    // All maxima first: the processor works on several, where it would wait for the scale of each before its integers.
    for (x, scale) in x.chunks_exact(row).zip(&mut *scales) {
        *scale = scale_of(abs_max(x));
    }
    for ((x, out), scale) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)).zip(scales) {
        quantize(by, x, Uniform::new(*scale, 0, -127, 127), out);
    }
}

/// What integers stand for, of the elements from `at` on.
#[inline(always)]
fn reals<const N: usize>(q: [i32; N], steps: impl Steps, at: usize) -> [f32; N] {
    let (scale, zero_point) = (steps.scales::<N>(at), steps.zero_points::<N>(at));
    let mut reals = [0.0; N];
    for i in 0..N {
        reals[i] = (q[i] - zero_point[i]) as f32 * scale[i];
    }
    reals
}

/// What the integers nearest to the elements from `at` on stand for.
#[inline(always)]
fn nearest<const N: usize>(by: impl Instructions, x: &[f32; N], steps: impl Steps, at: usize) -> [f32; N] {
    let mut q = fixed(by, x, steps, at);
    // Over an iterator it is a quarter slower.
    #[allow(clippy::needless_range_loop)]
    for i in 0..N {
        let (nearest, most) = (q[i] >> FRACTION, steps.qmax());
        q[i] = if nearest < most { nearest } else { most };
    }
    reals(q, steps, at)
}

#[inline(always)]
pub(super) fn dequantize<T: QuantInt>(q: &[T], steps: impl Steps, out: &mut [f32]) {
    assert_eq!(q.len(), out.len());
    let (chunks, tail) = q.as_chunks::<LANES>();
    let (places, rest) = out.as_chunks_mut::<LANES>();
    for (i, (chunk, place)) in chunks.iter().zip(places).enumerate() {
        stream::read_ahead(chunk);
        *place = reals(wide(chunk), steps, i * LANES);
    }
    for (i, (q, place)) in tail.as_chunks::<1>().0.iter().zip(rest).enumerate() {
        [*place] = reals(wide(q), steps, chunks.len() * LANES + i);
    }
}

#[inline(always)]
fn wide<T: QuantInt, const N: usize>(q: &[T; N]) -> [i32; N] {
    let mut wide = [0; N];
    for i in 0..N {
        wide[i] = q[i].to_i32();
    }
    wide
}

#[inline(always)]
pub(super) fn fake_quantize(by: impl Instructions, x: &[f32], steps: impl Steps, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (places, rest) = out.as_chunks_mut::<LANES>();
    for (i, (chunk, place)) in chunks.iter().zip(places).enumerate() {
        stream::read_ahead(chunk);
        *place = nearest(by, chunk, steps, i * LANES);
    }
    for (i, (v, place)) in tail.as_chunks::<1>().0.iter().zip(rest).enumerate() {
        [*place] = nearest(by, v, steps, chunks.len() * LANES + i);
    }
}

#[inline(always)]
pub(super) fn quantization_error(by: impl Instructions, x: &[f32], steps: impl Steps) -> f64 {
    let mut sums = [0.0; LANES];
    let square = |real: f32, v: f32| {
        let error = f64::from(real) - f64::from(v);
        error * error
    };
    let (chunks, tail) = x.as_chunks::<LANES>();
    for (i, chunk) in chunks.iter().enumerate() {
        stream::read_ahead(chunk);
        let reals = nearest(by, chunk, steps, i * LANES);
        for i in 0..LANES {
            sums[i] += square(reals[i], chunk[i]);
        }
    }
    for (i, v) in tail.as_chunks::<1>().0.iter().enumerate() {
        let [real] = nearest(by, v, steps, chunks.len() * LANES + i);
        sums[0] += square(real, v[0]);
    }
    sums.into_iter().sum()
}

#[inline(always)]
pub(super) fn min_max(x: &[f32]) -> Option<(f32, f32)> {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (mut los, mut his) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for chunk in chunks {
        stream::read_ahead(chunk);
        for (i, &v) in chunk.iter().enumerate() {
            los[i] = smaller(v, los[i]);
            his[i] = larger(v, his[i]);
        }
    }
    join(&los, &his, tail)
}

/// What `pick` takes of lanes that are not NaN, halving them: one after the other would take as long as hundreds of elements.
#[inline(always)]
fn fold(lanes: &[f32; LANES], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let mut picked = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            picked[i] = pick(picked[i], picked[i + half]);
        }
        half /= 2;
    }
    picked[0]
}

/// The extremes of lanes and of what is left over; −0 becomes 0.
#[inline(always)]
fn join(los: &[f32; LANES], his: &[f32; LANES], tail: &[f32]) -> Option<(f32, f32)> {
    let lo = tail.iter().fold(fold(los, smaller), |lo, &v| smaller(v, lo));
    let hi = tail.iter().fold(fold(his, larger), |hi, &v| larger(v, hi));
    (lo <= hi).then_some((lo + 0.0, hi + 0.0))
}

/// Raises each maximum to the magnitude of its element. All of them are stored, raised or not: the compiler would store some
/// by a mask, which is slow.
#[inline(always)]
fn raise(maxima: &mut [f32; LANES], x: &[f32; LANES]) {
    let mut raised = *maxima;
    for i in 0..LANES {
        raised[i] = larger(x[i].abs(), raised[i]);
    }
    *maxima = raised;
}

#[inline(always)]
pub(super) fn raise_abs_max(maxima: &mut [f32], x: &[f32]) {
    let row = maxima.len();
    if row == 0 {
        return assert!(x.is_empty());
    }
    assert!(x.len().is_multiple_of(row));
    let (places, rest) = maxima.as_chunks_mut::<LANES>();
    // Two rows, or one twice: maxima are read and written half as often, and of one the compiler would store some by a mask.
    for rows in x.chunks(2 * row) {
        let ((first, tail), (last, last_tail)) =
            (rows[..row].as_chunks::<LANES>(), rows[rows.len() - row..].as_chunks::<LANES>());
        for ((first, last), place) in first.iter().zip(last).zip(&mut *places) {
            stream::read_ahead(first);
            stream::read_ahead(last);
            let mut raised = *place;
            for i in 0..LANES {
                raised[i] = larger(last[i].abs(), larger(first[i].abs(), raised[i]));
            }
            *place = raised;
        }
        for ((first, last), max) in tail.iter().zip(last_tail).zip(&mut *rest) {
            *max = larger(last.abs(), larger(first.abs(), *max));
        }
    }
}

#[inline(always)]
pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let square = |v: f32| f64::from(v) * f64::from(v);
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += square(v);
        }
    }
    sums.into_iter().chain(tail.iter().map(|&v| square(v))).sum()
}

#[inline(always)]
pub(super) fn raise_extents(sizes: &mut [f32], sums: &mut [f32], even: &[f32], odd: &[f32]) -> f64 {
    let count = sizes.len();
    assert!(sums.len() == count && even.len() == count && odd.len() == count);
    let (sizes, size_tail) = sizes.as_chunks_mut::<LANES>();
    let (sums, sum_tail) = sums.as_chunks_mut::<LANES>();
    let ((even, even_tail), (odd, odd_tail)) = (even.as_chunks::<LANES>(), odd.as_chunks::<LANES>());
    let mut squares = [0.0; LANES];
    for (((sizes, sums), even), odd) in sizes.iter_mut().zip(sums).zip(even).zip(odd) {
        // Copies, all of which are stored, raised or not: as in `raise`.
        let (mut raised, mut together) = (*sizes, *sums);
        for i in 0..LANES {
            raised[i] = larger(odd[i].abs(), larger(even[i].abs(), raised[i]));
            together[i] = larger((even[i] + odd[i]).abs(), together[i]);
        }
        (*sizes, *sums) = (raised, together);
        for i in 0..LANES {
            let (a, b) = (f64::from(even[i]), f64::from(odd[i]));
            squares[i] += a * a + b * b;
        }
    }
    let rest = size_tail.iter_mut().zip(sum_tail).zip(even_tail).zip(odd_tail);
    for (((size, sum), &a), &b) in rest {
        *size = larger(b.abs(), larger(a.abs(), *size));
        *sum = larger((a + b).abs(), *sum);
        squares[0] += f64::from(a) * f64::from(a) + f64::from(b) * f64::from(b);
    }
    squares.into_iter().sum()
}

#[inline(always)]
pub(super) fn abs_max(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut maxima = [0.0; LANES];
    for chunk in chunks {
        stream::read_ahead(chunk);
        raise(&mut maxima, chunk);
    }
    tail.iter().fold(fold(&maxima, larger), |max, &v| larger(v.abs(), max))
}

/// [`min_max`], and the smallest magnitude that is neither 0 nor NaN, infinite if there is none.
#[inline(always)]
pub(super) fn extremes(x: &[f32]) -> (Option<(f32, f32)>, f32) {
    // Magnitudes are ordered like their bits, and subtracting 1 makes 0 the largest.
    let key = |v: f32| (v.to_bits() & 0x7FFF_FFFF).wrapping_sub(1);
    const NONE: u32 = f32::INFINITY.to_bits() - 1;
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (mut los, mut his) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut keys = [NONE; LANES];
    for chunk in chunks {
        stream::read_ahead(chunk);
        for (i, &v) in chunk.iter().enumerate() {
            los[i] = smaller(v, los[i]);
            his[i] = larger(v, his[i]);
            keys[i] = key(v).min(keys[i]);
        }
    }
    let least = keys.into_iter().chain(tail.iter().map(|&v| key(v))).fold(NONE, u32::min) + 1;
    (join(&los, &his, tail), f32::from_bits(least))
}

#[inline(always)]
pub(super) fn quantize_columns(x: &[f32], scales: &[f32], out: &mut [i8]) -> f64 {
    assert!(x.len() == scales.len() && x.len() == out.len());
    let limits = Limits::new(0, -127, 127);
    let nearest = |v: f32, scale: f32| limits.clamp(v / scale) + ROUNDER;
    let integer = |nearest: f32| (nearest.to_bits() as i32 - ROUNDER.to_bits() as i32) as i8;
    let squared = |nearest: f32, v: f32, scale: f32| {
        let error = f64::from((nearest - ROUNDER) * scale) - f64::from(v);
        error * error
    };
    let ((x, x_tail), (scales, scale_tail)) = (x.as_chunks::<LANES>(), scales.as_chunks::<LANES>());
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for ((x, scales), out) in x.iter().zip(scales).zip(out) {
        // A loop for each width of numbers: the compiler makes vectors of these.
        let mut all = [0.0; LANES];
        for i in 0..LANES {
            all[i] = nearest(x[i], scales[i]);
        }
        for i in 0..LANES {
            out[i] = integer(all[i]);
        }
        for i in 0..LANES {
            sums[i] += squared(all[i], x[i], scales[i]);
        }
    }
    for (((&v, &scale), q), sum) in x_tail.iter().zip(scale_tail).zip(out_tail).zip(&mut sums) {
        let nearest = nearest(v, scale);
        *q = integer(nearest);
        *sum += squared(nearest, v, scale);
    }
    sums.into_iter().sum()
}

/// Zeros of successive elements go to as many different counters, which [`gather_zeros`] then adds up.
const ZERO_LANES: usize = 16;

/// Subnormals and zeros have an exponent field of 0: this many bins of each sign.
pub(super) const TINY: usize = 1 << 7;
/// First bin of negative numbers.
pub(super) const SIGN: usize = 1 << 15;

/// The bin of a number that is not zero, `lane` of one that is.
#[inline(always)]
fn bin(v: f32, lane: usize) -> usize {
    let bits = v.to_bits();
    usize::from((bits >> 16) as u16) | if bits << 1 == 0 { lane } else { 0 }
}

#[inline(always)]
pub(super) fn count_bins(x: &[f32], table: &mut BinTable) {
    const { assert!(ZERO_LANES <= TINY) };
    let (chunks, tail) = x.as_chunks::<ZERO_LANES>();
    for chunk in chunks {
        for lane in 0..ZERO_LANES {
            table[bin(chunk[lane], lane)] += 1;
        }
    }
    for &v in tail {
        table[bin(v, 0)] += 1;
    }
}

/// Moves the counts of the zeros and subnormals to bin 0.
pub(super) fn gather_zeros(table: &mut BinTable) {
    let (positive, negative) = table.split_at_mut(SIGN);
    let (zero, tiny) = positive[..TINY].split_first_mut().expect("TINY > 0");
    for count in tiny.iter_mut().chain(&mut negative[..TINY]) {
        *zero += std::mem::take(count);
    }
}
