//! The numbers that ncnn's layers know their operations by.

/// Types of `BinaryOp`.
pub(super) const ADD: i32 = 0;
pub(super) const SUB: i32 = 1;
pub(super) const MUL: i32 = 2;
pub(super) const DIV: i32 = 3;
pub(super) const POW: i32 = 6;

/// Types of `UnaryOp`.
pub(super) const SQUARE: i32 = 4;
pub(super) const SQRT: i32 = 5;
pub(super) const LOG: i32 = 8;

/// Type of `Reduction`.
pub(super) const MEAN: i32 = 3;
