//! Scales and zero points as the loops want them: one of each for a slice, or one for each element.

use super::product::Product;

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
pub(in crate::kernels) struct Shared {
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
pub(in crate::kernels) struct Own<'a> {
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
pub(in crate::kernels) struct Columns {
    scale: Vec<f32>,
    reciprocal: Vec<f32>,
    zero_point: Vec<i32>,
    offset: Vec<f32>,
    /// The zero point, if all elements have the same.
    pub(in crate::kernels) shared: Option<Shared>,
    qmin: i32,
    qmax: i32,
    product: Product,
}

impl Columns {
    pub(in crate::kernels) fn new(scale: Vec<f32>, zero_point: Vec<i32>, qmin: i32, qmax: i32) -> Self {
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
    pub(in crate::kernels) fn own(&self, at: usize, length: usize) -> Own<'_> {
        let of = at..at + length;
        Own { points: &self.zero_point[of.clone()], offsets: &self.offset[of] }
    }

    /// The parameters of these elements.
    pub(in crate::kernels) fn part<Z: Zeros>(&self, at: usize, length: usize, zeros: Z) -> Each<'_, Z> {
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
