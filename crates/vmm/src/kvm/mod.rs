//! Everything that talks to KVM.

/// What a guest may see of the processor.
pub(crate) mod cpuid;
#[expect(unsafe_code, reason = "KVM_PRE_FAULT_MEMORY has no wrapper")]
pub(crate) mod prefault;
/// What a guest of another process was shown of its processor.
pub(crate) mod processor;
#[expect(unsafe_code, reason = "KVM_SET_XSAVE takes a buffer whose size only KVM knows")]
pub(crate) mod state;
#[expect(unsafe_code, reason = "a vCPU is stopped through memory that it shares with KVM")]
pub(crate) mod vcpu;
#[expect(unsafe_code, reason = "KVM is told where guest memory is")]
pub(crate) mod vm;
