//! The part of ONNX Runtime's C interface that a custom operator needs.
//!
//! `OrtApi` is a table of functions that only ever grows at its end, so a function is named by its position; every
//! function used here is in version 17 of the table (ONNX Runtime 1.17). `OrtCustomOp` is the table that an operator
//! gives in return; fields after those of its `version` are not read.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

/// Version of the two tables.
pub(super) const VERSION: u32 = 17;

/// An object of ONNX Runtime, only ever seen through a pointer.
macro_rules! opaque {
    ($($name:ident),*) => {$(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )*};
}
opaque!(SessionOptions, Status, Domain, KernelInfo, KernelContext, Value, TensorInfo);

/// Null for success.
pub(super) type StatusPtr = *mut Status;

/// Where the table of functions comes from.
#[repr(C)]
pub struct ApiBase {
    pub(super) get_api: unsafe extern "system" fn(version: u32) -> *const Api,
    _version_string: unsafe extern "system" fn() -> *const c_char,
}

/// `OrtApi`: a table of function pointers.
#[repr(C)]
pub struct Api {
    functions: [*const c_void; 275],
}

/// Declares methods of [`Api`]: name, position, parameters, result.
macro_rules! functions {
    ($($name:ident = $at:literal ( $($arg:ident : $type:ty),* ) $(-> $out:ty)?;)*) => {
        impl Api {$(
            /// # Safety
            /// The arguments must be what ONNX Runtime's C interface asks of the function at this position.
            pub(super) unsafe fn $name(&self, $($arg: $type),*) $(-> $out)? {
                type Function = unsafe extern "system" fn($($type),*) $(-> $out)?;
                // SAFETY: the table has held this function, of this type, at this position since version 17.
                let function = unsafe { std::mem::transmute::<*const c_void, Function>(self.functions[$at]) };
                // SAFETY: passed on to the caller.
                unsafe { function($($arg),*) }
            }
        )*}
    };
}
functions! {
    create_status = 0 (code: c_int, message: *const c_char) -> StatusPtr;
    create_domain = 26 (name: *const c_char, out: *mut *mut Domain) -> StatusPtr;
    add_op = 27 (domain: *mut Domain, op: *const CustomOp) -> StatusPtr;
    add_domain = 28 (options: *mut SessionOptions, domain: *mut Domain) -> StatusPtr;
    tensor_data = 51 (value: *mut Value, out: *mut *mut c_void) -> StatusPtr;
    element_type = 60 (info: *const TensorInfo, out: *mut c_int) -> StatusPtr;
    dimension_count = 61 (info: *const TensorInfo, out: *mut usize) -> StatusPtr;
    dimensions = 62 (info: *const TensorInfo, out: *mut i64, length: usize) -> StatusPtr;
    tensor_info = 65 (value: *const Value, out: *mut *mut TensorInfo) -> StatusPtr;
    int_attribute = 86 (info: *const KernelInfo, name: *const c_char, out: *mut i64) -> StatusPtr;
    input = 90 (context: *const KernelContext, index: usize, out: *mut *const Value) -> StatusPtr;
    release_tensor_info = 99 (info: *mut TensorInfo);
    parallel_for = 274 (
        context: *const KernelContext,
        function: unsafe extern "C" fn(data: *mut c_void, index: usize),
        total: usize,
        batches: usize,
        data: *mut c_void
    ) -> StatusPtr;
}

/// `ONNXTensorElementDataType`.
pub(super) mod element {
    use std::ffi::c_int;
    pub(in super::super) const ANY: c_int = 0;
    pub(in super::super) const FLOAT: c_int = 1;
    pub(in super::super) const FLOAT16: c_int = 10;
    pub(in super::super) const DOUBLE: c_int = 11;
}

/// `OrtCustomOp` of version 17. A missing optional function is null.
#[repr(C)]
pub struct CustomOp {
    pub(super) version: u32,
    pub(super) create_kernel: Option<extern "system" fn()>,
    pub(super) name: extern "system" fn(*const CustomOp) -> *const c_char,
    pub(super) provider: extern "system" fn(*const CustomOp) -> *const c_char,
    pub(super) input_type: extern "system" fn(*const CustomOp, usize) -> c_int,
    pub(super) input_count: extern "system" fn(*const CustomOp) -> usize,
    pub(super) output_type: extern "system" fn(*const CustomOp, usize) -> c_int,
    pub(super) output_count: extern "system" fn(*const CustomOp) -> usize,
    pub(super) compute: Option<extern "system" fn()>,
    pub(super) destroy_kernel: unsafe extern "system" fn(*mut c_void),
    pub(super) input_characteristic: extern "system" fn(*const CustomOp, usize) -> c_int,
    pub(super) output_characteristic: extern "system" fn(*const CustomOp, usize) -> c_int,
    pub(super) input_memory: extern "system" fn(*const CustomOp, usize) -> c_int,
    pub(super) variadic_input: [extern "system" fn(*const CustomOp) -> c_int; 2],
    pub(super) variadic_output: [extern "system" fn(*const CustomOp) -> c_int; 2],
    pub(super) create_kernel_v2: unsafe extern "system" fn(
        *const CustomOp,
        *const Api,
        *const KernelInfo,
        *mut *mut c_void,
    ) -> StatusPtr,
    pub(super) compute_v2: unsafe extern "system" fn(*mut c_void, *mut KernelContext) -> StatusPtr,
    pub(super) infer_shape: Option<extern "system" fn()>,
    pub(super) start_version: extern "system" fn(*const CustomOp) -> c_int,
    pub(super) end_version: extern "system" fn(*const CustomOp) -> c_int,
}
