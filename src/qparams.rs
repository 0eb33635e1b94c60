//! All scale and zero-point arithmetic, once.
//!
//! | scheme | integers | scale | zero point |
//! |---|---|---|---|
//! | symmetric | int8, −127…127 | `absmax / 127` | 0 |
//! | asymmetric | uint8, 0…255 | `(max − min) / 255`, the range first widened to hold 0 | `round(−min / scale)` |
//!
//! `q = saturate(round_half_even(x / scale) + zero_point)` and `x ≈ scale × (q − zero_point)`
//! (ONNX QuantizeLinear and DequantizeLinear).
//!
//! A scale is always a normal, finite number: a range of only zeros gets scale 1 and zero point 0, one too small for a
//! normal scale gets the smallest, and magnitudes beyond `f32::MAX / 2` are clipped so that `scale × code` is finite.

/// The interval of real values that a quantized tensor must represent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
}

impl Range {
    /// The range of a tensor that holds nothing but zeros.
    pub const ZERO: Self = Self { min: 0.0, max: 0.0 };

    /// `−limit…limit`.
    pub fn symmetric(limit: f32) -> Self {
        Self { min: -limit, max: limit }
    }

    /// The smallest range that holds both this one and 0; a NaN end becomes 0.
    pub fn with_zero(self) -> Self {
        Self { min: self.min.min(0.0), max: self.max.max(0.0) }
    }

    /// Largest magnitude.
    pub fn abs_max(self) -> f32 {
        self.max.abs().max(self.min.abs())
    }
}

/// Integer type of a quantized tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// −128…127.
    Int8,
    /// 0…255.
    Uint8,
    /// −32768…32767.
    Int16,
    /// 0…65535.
    Uint16,
    /// For biases, with the scale of input × weight.
    Int32,
}

impl Dtype {
    /// Smallest integer of the type.
    pub fn qmin(self) -> i32 {
        match self {
            Self::Int8 => i8::MIN.into(),
            Self::Uint8 | Self::Uint16 => 0,
            Self::Int16 => i16::MIN.into(),
            Self::Int32 => i32::MIN,
        }
    }

    /// Largest integer of the type.
    pub fn qmax(self) -> i32 {
        match self {
            Self::Int8 => i8::MAX.into(),
            Self::Uint8 => u8::MAX.into(),
            Self::Int16 => i16::MAX.into(),
            Self::Uint16 => u16::MAX.into(),
            Self::Int32 => i32::MAX,
        }
    }
}

/// How a range of reals is laid on the integers; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// uint8 with a zero point.
    Asymmetric,
    /// int8 around 0.
    Symmetric,
}

/// The real numbers `scale × (q − zero_point)` for `q` in `qmin..=qmax`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Distance between neighbours.
    pub scale: f32,
    /// The integer that means 0.
    pub zero_point: i32,
    /// Smallest integer in use.
    pub qmin: i32,
    /// Largest integer in use.
    pub qmax: i32,
}

impl Grid {
    /// The grid that covers `range`.
    pub fn new(range: Range, scheme: Scheme) -> Self {
        const LIMIT: f32 = f32::MAX / 2.0;
        let Range { min, max } = range.with_zero();
        let (min, max) = (min.max(-LIMIT), max.min(LIMIT));
        match scheme {
            Scheme::Asymmetric => {
                let scale = scale(f64::from(max) - f64::from(min), 255);
                let zero_point = (f64::from(-min) / f64::from(scale)).round_ties_even() as i32;
                Self { scale, zero_point: zero_point.min(255), qmin: 0, qmax: 255 }
            }
            Scheme::Symmetric => {
                let scale = scale(f64::from(max.max(-min)), 127);
                Self { scale, zero_point: 0, qmin: -127, qmax: 127 }
            }
        }
    }

    /// The interval from the smallest to the largest number of the grid.
    pub fn covers(self) -> Range {
        let real = |q: i32| ((f64::from(q) - f64::from(self.zero_point)) * f64::from(self.scale)) as f32;
        Range { min: real(self.qmin), max: real(self.qmax) }
    }
}

/// `width / steps`, kept normal; 1 if there is no width.
fn scale(width: f64, steps: i32) -> f32 {
    if width > 0.0 { ((width / f64::from(steps)) as f32).max(f32::MIN_POSITIVE) } else { 1.0 }
}

/// What QuantizeLinear and DequantizeLinear need to know about a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantParams {
    /// One scale for the tensor, or one for each channel.
    pub scale: Vec<f32>,
    /// As many zero points as scales.
    pub zero_point: Vec<i32>,
    /// The channel axis; `None` for a single scale.
    pub axis: Option<usize>,
    /// The integers.
    pub dtype: Dtype,
}

impl QuantParams {
    /// Per tensor, in the given scheme.
    pub fn new(range: Range, scheme: Scheme) -> Self {
        let grid = Grid::new(range, scheme);
        let dtype = match scheme {
            Scheme::Asymmetric => Dtype::Uint8,
            Scheme::Symmetric => Dtype::Int8,
        };
        Self { scale: vec![grid.scale], zero_point: vec![grid.zero_point], axis: None, dtype }
    }

    /// uint8 with a zero point.
    pub fn asymmetric(range: Range) -> Self {
        Self::new(range, Scheme::Asymmetric)
    }

    /// int8 around 0.
    pub fn symmetric(range: Range) -> Self {
        Self::new(range, Scheme::Symmetric)
    }

    /// Symmetric int8 weights, given the largest magnitude in each channel.
    pub fn per_channel(abs_max: &[f32], axis: usize) -> Self {
        let scale_of = |&limit: &f32| Grid::new(Range::symmetric(limit), Scheme::Symmetric).scale;
        Self {
            scale: abs_max.iter().map(scale_of).collect(),
            zero_point: vec![0; abs_max.len()],
            axis: Some(axis),
            dtype: Dtype::Int8,
        }
    }

    /// The same range on integers of 16 bits, signed or not as they were.
    pub fn widened(self) -> Self {
        let dtype = if self.dtype == Dtype::Uint8 { Dtype::Uint16 } else { Dtype::Int16 };
        let symmetric = dtype == Dtype::Int16;
        let of_channel = |channel: usize| {
            let Range { min, max } = self.covers(channel);
            let steps = if symmetric { i16::MAX.into() } else { u16::MAX.into() };
            let scale = scale(f64::from(max) - if symmetric { 0.0 } else { f64::from(min) }, steps);
            let zero_point = (f64::from(-min) / f64::from(scale)).round_ties_even() as i32;
            (scale, if symmetric { 0 } else { zero_point.clamp(0, steps) })
        };
        let (scale, zero_point) = (0..self.scale.len()).map(of_channel).unzip();
        Self { scale, zero_point, dtype, ..self }
    }

    /// The integers in use. Signed ones leave out the smallest, so that the grid is its own mirror image.
    pub fn limits(&self) -> (i32, i32) {
        match self.dtype {
            Dtype::Int8 | Dtype::Int16 => (-self.dtype.qmax(), self.dtype.qmax()),
            dtype => (dtype.qmin(), dtype.qmax()),
        }
    }

    /// The grid of one channel (0 for the whole tensor).
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn grid(&self, channel: usize) -> Grid {
        let (qmin, qmax) = self.limits();
        Grid { scale: self.scale[channel], zero_point: self.zero_point[channel], qmin, qmax }
    }

    /// The real interval that one channel (0 for the whole tensor) covers.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn covers(&self, channel: usize) -> Range {
        self.grid(channel).covers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::fake_quantize;
    use proptest::prelude::*;

    #[test]
    fn table() {
        use Scheme::{Asymmetric, Symmetric};
        let cases = [
            (Asymmetric, (0.0, 255.0), (1.0, 0)),
            (Asymmetric, (-128.0, 127.0), (1.0, 128)),
            (Asymmetric, (-255.0, -3.0), (1.0, 255)),
            (Asymmetric, (2.0, 51.0), (0.2, 0)),
            (Asymmetric, (0.0, 0.0), (1.0, 0)),
            (Asymmetric, (0.0, 1e-45), (f32::MIN_POSITIVE, 0)),
            (Asymmetric, (f32::NAN, f32::NAN), (1.0, 0)),
            (Symmetric, (-127.0, 12.0), (1.0, 0)),
            (Symmetric, (0.5, 254.0), (2.0, 0)),
            (Symmetric, (0.0, 0.0), (1.0, 0)),
            (Symmetric, (-1e-40, 0.0), (f32::MIN_POSITIVE, 0)),
        ];
        for (scheme, (min, max), (scale, zero_point)) in cases {
            let found = QuantParams::new(Range { min, max }, scheme);
            assert_eq!((found.scale[0], found.zero_point[0]), (scale, zero_point), "{scheme:?} {min} {max}");
        }
    }

    #[test]
    fn huge_ranges_stay_finite() {
        for limit in [f32::MAX, f32::INFINITY] {
            for scheme in [Scheme::Asymmetric, Scheme::Symmetric] {
                let covers = Grid::new(Range::symmetric(limit), scheme).covers();
                assert!(covers.min.is_finite() && covers.max.is_finite(), "{covers:?}");
                assert!(covers.min < -1e38 && covers.max > 1e38, "{covers:?}");
            }
        }
    }

    #[test]
    fn channels() {
        let params = QuantParams::per_channel(&[127.0, 0.0, 254.0], 1);
        assert_eq!((params.scale.as_slice(), params.axis), ([1.0, 1.0, 2.0].as_slice(), Some(1)));
        assert_eq!(params.covers(2), Range::symmetric(254.0));
    }

    /// Any sign and any magnitude for which no end is clipped.
    fn real() -> impl Strategy<Value = f32> {
        (prop::num::f32::ZERO | prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL).prop_map(|v| v / 2.0)
    }

    proptest! {
        #[test]
        fn zero_is_exact_and_errors_are_half_a_step(a in real(), b in real(), t in 0.0..=1.0_f64, symmetric: bool) {
            let scheme = if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric };
            let Grid { scale, zero_point, qmin, qmax } = Grid::new(Range { min: a.min(b), max: a.max(b) }, scheme);
            prop_assert!(scale.is_normal() && (qmin..=qmax).contains(&zero_point));
            let x = (f64::from(a) + t * (f64::from(b) - f64::from(a))) as f32;
            let mut y = [0.0; 4];
            fake_quantize(&[0.0, a, b, x], scale, zero_point, qmin, qmax, &mut y);
            prop_assert_eq!(y[0], 0.0);
            for (x, y) in [a, b, x].into_iter().zip(&y[1..]) {
                let (error, bound) = ((f64::from(*y) - f64::from(x)).abs(), f64::from(scale) * 0.5001);
                prop_assert!(error <= bound, "{} became {}, scale {}", x, y, scale);
            }
        }
    }
}
