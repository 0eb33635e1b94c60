//! What the processor of this machine has that decides how fast int8 is.

/// The instructions for products of bytes that ONNX Runtime's integer kernels would use, if this processor lacks them: it is
/// about as fast in float then. `None` also where that is not known.
pub fn missing_instructions() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
        (!found).then_some("VNNI")
    }
    #[cfg(target_arch = "aarch64")]
    {
        let found = std::arch::is_aarch64_feature_detected!("dotprod");
        (!found).then_some("the dot product of ARMv8.2")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    None
}
