//! `ai.rustq.Observe`, a custom operator of ONNX Runtime: one tensor in, nothing out.
//!
//! The extension module is also the library of custom operators: ONNX Runtime loads it by its path and calls
//! [`RegisterCustomOps`]. No panic leaves the functions that it calls; an error becomes its status.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Arc, Mutex};

use half::f16;

use super::abi::{
    self, Api, ApiBase, CustomOp, Domain, KernelContext, KernelInfo, SessionOptions, StatusPtr, element,
};
use super::graph::{BLOCK, CHANNELS, DOMAIN, HANDLE, OP_TYPE, SLOT};
use super::{Slot, locked};
use crate::calibration::Seen;

/// Fewer values than this are counted by one thread.
const SHARE: usize = 1 << 15;
/// Values that are converted at a time.
const BUFFER: usize = 1 << 12;

/// A status of ONNX Runtime that is not success, or a message of ours.
enum Failure {
    Status(StatusPtr),
    Message(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Message(message)
    }
}

type Outcome<T = ()> = Result<T, Failure>;

fn checked(status: StatusPtr) -> Outcome {
    if status.is_null() { Ok(()) } else { Err(Failure::Status(status)) }
}

/// Runs `body` and tells ONNX Runtime how it went.
fn reported(api: &Api, body: impl FnOnce() -> Outcome) -> StatusPtr {
    const FAIL: c_int = 1;
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(Failure::Status(status))) => return status,
        Ok(Err(Failure::Message(message))) => message,
        Err(_) => "an internal error".to_owned(),
    };
    let message = CString::new(message).unwrap_or_default();
    // SAFETY: a string that ends in zero, which is copied.
    unsafe { api.create_status(FAIL, message.as_ptr()) }
}

/// A domain must outlive every session: one for each copy of ONNX Runtime in the process, kept for ever.
static DOMAINS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Adds the operator to the options of a session.
///
/// # Safety
/// Called by ONNX Runtime, with pointers that are valid during the call.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn RegisterCustomOps(
    options: *mut SessionOptions,
    base: *const ApiBase,
) -> StatusPtr {
    // SAFETY: the caller's pointer; the table lives as long as ONNX Runtime is loaded.
    let Some(api) = (unsafe { ((*base).get_api)(abi::VERSION).as_ref() }) else {
        // A version older than the operator needs. There is no table to make a status with, and without the operator
        // the session refuses the model.
        return ptr::null_mut();
    };
    reported(api, || {
        let domain = domain(api)?;
        // SAFETY: options of the caller; a domain that is never freed.
        checked(unsafe { api.add_domain(options, domain) })
    })
}

fn domain(api: &Api) -> Outcome<*mut Domain> {
    let mut domains = locked(&DOMAINS);
    let key = ptr::from_ref(api).expose_provenance();
    if let Some((_, domain)) = domains.iter().find(|(table, _)| *table == key) {
        return Ok(ptr::with_exposed_provenance_mut(*domain));
    }
    let mut domain = ptr::null_mut();
    let name = c_string(DOMAIN);
    // SAFETY: a string that ends in zero, and a place for the result.
    checked(unsafe { api.create_domain(name.as_ptr(), &raw mut domain) })?;
    // SAFETY: the domain just made; the operator is static.
    checked(unsafe { api.add_op(domain, &raw const OBSERVE) })?;
    domains.push((key, domain.expose_provenance()));
    Ok(domain)
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("no zero in a name of ours")
}

static OBSERVE: CustomOp = {
    extern "system" fn name(_: *const CustomOp) -> *const c_char {
        const NAME: &CStr = c"Observe";
        const { assert!(NAME.count_bytes() == OP_TYPE.len()) };
        NAME.as_ptr()
    }
    extern "system" fn cpu(_: *const CustomOp) -> *const c_char {
        ptr::null()
    }
    extern "system" fn any_type(_: *const CustomOp, _: usize) -> c_int {
        element::ANY
    }
    extern "system" fn one(_: *const CustomOp) -> usize {
        1
    }
    extern "system" fn none(_: *const CustomOp) -> usize {
        0
    }
    extern "system" fn plain(_: *const CustomOp, _: usize) -> c_int {
        0
    }
    extern "system" fn not_variadic(_: *const CustomOp) -> c_int {
        0
    }
    extern "system" fn version(_: *const CustomOp) -> c_int {
        1
    }
    CustomOp {
        version: abi::VERSION,
        create_kernel: None,
        name,
        provider: cpu,
        input_type: any_type,
        input_count: one,
        output_type: any_type,
        output_count: none,
        compute: None,
        destroy_kernel: destroy,
        input_characteristic: plain,
        output_characteristic: plain,
        input_memory: plain,
        variadic_input: [not_variadic; 2],
        variadic_output: [not_variadic; 2],
        create_kernel_v2: create,
        compute_v2: compute,
        infer_shape: None,
        start_version: version,
        end_version: version,
    }
};

/// A node of a session.
struct Kernel {
    api: *const Api,
    slots: Arc<[Slot]>,
    slot: usize,
    blocks: Option<Blocks>,
}

/// The layout of a value whose channels stand in blocks, `[N, C / size, H, W, size]`, the last one filled up.
#[derive(Clone, Copy)]
struct Blocks {
    channels: usize,
    size: usize,
}

unsafe extern "system" fn create(
    _: *const CustomOp,
    api: *const Api,
    info: *const KernelInfo,
    out: *mut *mut c_void,
) -> StatusPtr {
    // SAFETY: the table lives as long as ONNX Runtime is loaded.
    let table = unsafe { &*api };
    reported(table, || {
        let attribute = |name| {
            let (name, mut value) = (c_string(name), 0);
            // SAFETY: the caller's `info`, a string that ends in zero, and a place for the result.
            checked(unsafe { table.int_attribute(info, name.as_ptr(), &raw mut value) })?;
            Ok::<_, Failure>(value)
        };
        let found = Slot::find(attribute(HANDLE)?, attribute(SLOT)?);
        let (slots, slot) = found.ok_or_else(|| "its observers are gone".to_owned())?;
        // Both are there, or none.
        let optional = |name| attribute(name).ok().and_then(|value| usize::try_from(value).ok());
        let blocks =
            optional(CHANNELS).zip(optional(BLOCK)).map(|(channels, size)| Blocks { channels, size });
        let kernel = Box::new(Kernel { api, slots, slot, blocks });
        // SAFETY: the caller's place for the result.
        unsafe { *out = Box::into_raw(kernel).cast() };
        Ok(())
    })
}

unsafe extern "system" fn destroy(kernel: *mut c_void) {
    // SAFETY: made by `create`, and destroyed once.
    let kernel = unsafe { Box::from_raw(kernel.cast::<Kernel>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(kernel)));
}

unsafe extern "system" fn compute(kernel: *mut c_void, context: *mut KernelContext) -> StatusPtr {
    // SAFETY: made by `create`, not destroyed yet, and never changed.
    let kernel = unsafe { &*kernel.cast_const().cast::<Kernel>() };
    // SAFETY: the table lives as long as ONNX Runtime is loaded.
    let api = unsafe { &*kernel.api };
    reported(api, || {
        // SAFETY: the caller's `context`; the tensor lives, unchanged, until this returns.
        let Some((shape, values)) = (unsafe { input(api, context) })? else { return Ok(()) };
        let slot = &kernel.slots[kernel.slot];
        let mut unpadded = Vec::new();
        let values = match (kernel.blocks, values) {
            (Some(blocks), Values::F32(x)) if blocks.padded(&shape) => {
                blocks.without_padding(&shape, x, &mut unpadded)?;
                Values::F32(&unpadded)
            }
            _ => values,
        };
        let parts = (values.len() / SHARE).clamp(1, slot.shares());
        let work = Work { slot, shape: &shape, values, parts, failure: Mutex::default() };
        if parts == 1 {
            work.count(0);
        } else {
            work.on_threads(api, context)?;
        }
        locked(&work.failure).take().map_or(Ok(()), |message| Err(message.into()))
    })
}

impl Blocks {
    fn padded(self, shape: &[usize]) -> bool {
        shape.get(1).is_some_and(|&stored| stored != self.channels)
    }

    /// Collects what is no padding. Few values have some: the numbers of channels are mostly whole blocks.
    fn without_padding(self, shape: &[usize], x: &[f32], out: &mut Vec<f32>) -> Outcome {
        let [_, stored, height, width] = *shape else {
            return Err(format!("blocks of shape {shape:?}").into());
        };
        let pixels = height * width;
        if self.size == 0 || stored != self.channels.next_multiple_of(self.size) {
            return Err(format!("blocks of {} for {} channels in {shape:?}", self.size, self.channels).into());
        }
        let (whole, rest) = (self.channels / self.size * self.size, self.channels % self.size);
        for image in x.chunks_exact((stored * pixels).max(1)) {
            let (full, last) = image.split_at(whole * pixels);
            out.extend_from_slice(full);
            last.chunks_exact(self.size).for_each(|pixel| out.extend_from_slice(&pixel[..rest]));
        }
        Ok(())
    }
}

/// Values as the model computes them.
#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    F64(&'a [f64]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::F64(x) => x.len(),
        }
    }
}

/// Shape and values of the input, `None` if it does not hold floating-point numbers.
///
/// # Safety
/// `context` must be that of the present computation, and the result must not outlive it.
unsafe fn input<'a>(api: &Api, context: *const KernelContext) -> Outcome<Option<(Vec<usize>, Values<'a>)>> {
    let (mut value, mut info, mut kind, mut rank) = (ptr::null(), ptr::null_mut(), 0, 0);
    // SAFETY: the node has an input 0.
    checked(unsafe { api.input(context, 0, &raw mut value) })?;
    // SAFETY: a value of this computation. The information is released below, on every path.
    checked(unsafe { api.tensor_info(value, &raw mut info) })?;
    let mut shape = Vec::new();
    let described = (|| {
        // SAFETY: the information just made, and places for the results.
        checked(unsafe { api.element_type(info, &raw mut kind) })?;
        // SAFETY: as above.
        checked(unsafe { api.dimension_count(info, &raw mut rank) })?;
        shape.resize(rank, 0);
        // SAFETY: as above, with place for `rank` numbers.
        checked(unsafe { api.dimensions(info, shape.as_mut_ptr(), rank) })
    })();
    // SAFETY: made above, released once.
    unsafe { api.release_tensor_info(info) };
    described?;
    if ![element::FLOAT, element::FLOAT16, element::DOUBLE].contains(&kind) {
        return Ok(None);
    }
    let odd = || format!("a tensor of shape {shape:?}");
    let sizes: Option<Vec<_>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let sizes = sizes.ok_or_else(odd)?;
    let length = sizes.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).ok_or_else(odd)?;
    let mut data = ptr::null_mut();
    // SAFETY: a tensor of numbers; it is only read.
    checked(unsafe { api.tensor_data(value.cast_mut(), &raw mut data) })?;
    // SAFETY: `length` numbers of that type, aligned, that live as long as the computation.
    let values = unsafe {
        match kind {
            element::FLOAT => Values::F32(slice(data, length)),
            element::FLOAT16 => Values::F16(slice(data, length)),
            _ => Values::F64(slice(data, length)),
        }
    };
    Ok(Some((sizes, values)))
}

/// # Safety
/// If `length` is not 0, `data` must point to so many numbers, valid during `'a`.
unsafe fn slice<'a, T>(data: *const c_void, length: usize) -> &'a [T] {
    if length == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data.cast(), length) }
}

/// One tensor to count, in shares.
struct Work<'a> {
    slot: &'a Slot,
    shape: &'a [usize],
    values: Values<'a>,
    parts: usize,
    /// Why a share could not be counted.
    failure: Mutex<Option<String>>,
}

impl Work<'_> {
    /// Counts every share, on the threads of ONNX Runtime.
    fn on_threads(&self, api: &Api, context: *const KernelContext) -> Outcome {
        unsafe extern "C" fn share(work: *mut c_void, part: usize) {
            // SAFETY: the `Work` below, which outlives the loop and is only read.
            let work = unsafe { &*work.cast_const().cast::<Work>() };
            // A table index out of range is the only panic there could be, and it has none.
            let _ = catch_unwind(AssertUnwindSafe(|| work.count(part)));
        }
        let work = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the context of this computation; the call returns when every share is counted.
        checked(unsafe { api.parallel_for(context, share, self.parts, self.parts, work) })
    }

    /// Counts one share.
    fn count(&self, part: usize) {
        let (length, part_of) = (self.values.len(), self.parts);
        let at = |part: usize| (length as u128 * part as u128 / part_of as u128) as usize;
        let share = at(part)..at(part + 1);
        let counted = self.slot.fill(|seen| match self.values {
            Values::F32(x) => seen.observe(self.shape, share.start, &x[share]),
            Values::F16(x) => self.converted(seen, share.start, &x[share], |v| v.to_f32()),
            Values::F64(x) => self.converted(seen, share.start, &x[share], |v| v as f32),
        });
        if let Err(error) = counted {
            *locked(&self.failure) = Some(error.to_string());
        }
    }

    fn converted<T: Copy>(
        &self,
        seen: &mut Seen,
        start: usize,
        x: &[T],
        convert: impl Fn(T) -> f32,
    ) -> crate::Result<()> {
        let mut buffer = [0.0; BUFFER];
        for (number, chunk) in x.chunks(BUFFER).enumerate() {
            for (to, &from) in buffer.iter_mut().zip(chunk) {
                *to = convert(from);
            }
            seen.observe(self.shape, start + number * BUFFER, &buffer[..chunk.len()])?;
        }
        Ok(())
    }
}
