//! The processor that a guest was shown, and whether this host can show it to a machine that was saved elsewhere.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

/// What a machine relies on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Processor {
    /// What KVM supported where it was booted.
    pub(crate) leaves: Vec<kvm_cpuid_entry2>,
    /// The frequency of its time-stamp counter; 0 if KVM did not tell.
    pub(crate) tsc_khz: u32,
}

/// What this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeStampCounter {
    /// 0 if KVM does not tell.
    pub(crate) khz: u32,
    /// KVM can give a guest's another frequency.
    pub(crate) scales: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProcessorError {
    #[error("The guest was shown a processor of another make")]
    Vendor,
    #[error(
        "The guest was shown features that this processor has not: bits {missing:#x} of {register} in leaf \
         {leaf:#x}, {index}"
    )]
    Features { leaf: u32, index: u32, register: &'static str, missing: u32 },
    #[error("This processor lays out its extended state in another way (component {component})")]
    ExtendedState { component: u32 },
    #[error("The saved list of processor features has {count} leaves, which no processor has")]
    Leaves { count: usize },
    #[error(
        "The guest was shown a time-stamp counter of {saved} kHz; this host's has {here} and cannot be scaled"
    )]
    TimeStampCounter { saved: u32, here: u32 },
}

/// What frequencies may differ by, in millionths: the host's is measured anew at each of its boots, and KVM itself
/// takes less for none.
const TOLERANCE_PPM: u64 = 250;

/// Registers of leaves whose bits each stand for a feature, and those bits that do not.
#[rustfmt::skip]
const FEATURES: &[(u32, u32, &str, u32)] = &[
    // OSXSAVE is the guest's own setting.
    (0x1, 0, "ecx", 1 << 27),
    (0x1, 0, "edx", 0),
    (0x7, 0, "ebx", 0), (0x7, 0, "ecx", 1 << 4), (0x7, 0, "edx", 0),
    (0x7, 1, "eax", 0), (0x7, 1, "edx", 0),
    (0x7, 2, "edx", 0),
    (0xd, 0, "eax", 0), (0xd, 0, "edx", 0),
    (0xd, 1, "eax", 0), (0xd, 1, "ecx", 0),
    (0x4000_0001, 0, "eax", 0),
    (0x8000_0001, 0, "ecx", 0), (0x8000_0001, 0, "edx", 0),
    (0x8000_0007, 0, "edx", 0),
    (0x8000_0008, 0, "ebx", 0),
    (0x8000_0021, 0, "eax", 0),
];

const EXTENDED_STATE: u32 = 0xd;

impl Processor {
    /// Whether a guest that was shown this one can go on where KVM supports these leaves.
    pub(crate) fn check(&self, here: &CpuId, tsc: TimeStampCounter) -> Result<(), ProcessorError> {
        if self.leaves.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(ProcessorError::Leaves { count: self.leaves.len() });
        }
        let here = here.as_slice();
        let vendor = |leaves| leaf(leaves, 0, 0).map(|leaf| (leaf.ebx, leaf.ecx, leaf.edx));
        if vendor(&self.leaves) != vendor(here) {
            return Err(ProcessorError::Vendor);
        }
        for &(number, index, register, ignored) in FEATURES {
            let bits = |leaves| leaf(leaves, number, index).map_or(0, |leaf| bits_of(leaf, register));
            let missing = bits(&self.leaves) & !bits(here) & !ignored;
            if missing != 0 {
                return Err(ProcessorError::Features { leaf: number, index, register, missing });
            }
        }
        self.check_extended_state(here)?;
        self.check_tsc(tsc)
    }

    /// The saved state is laid out as it was there.
    fn check_extended_state(&self, here: &[kvm_cpuid_entry2]) -> Result<(), ProcessorError> {
        let components = leaf(&self.leaves, EXTENDED_STATE, 0).map_or(0, |leaf| leaf.eax);
        for component in (2..32).filter(|component| components & 1 << component != 0) {
            let place = |leaves| leaf(leaves, EXTENDED_STATE, component).map(|leaf| (leaf.eax, leaf.ebx));
            if place(&self.leaves) != place(here) {
                return Err(ProcessorError::ExtendedState { component });
            }
        }
        Ok(())
    }

    fn check_tsc(&self, tsc: TimeStampCounter) -> Result<(), ProcessorError> {
        let (saved, here) = (self.tsc_khz, tsc.khz);
        if saved == 0 || here == 0 || tsc.scales || is_near(saved, here) {
            return Ok(());
        }
        Err(ProcessorError::TimeStampCounter { saved, here })
    }
}

/// Whether a guest would take the one for the other.
pub(crate) fn is_near(one_khz: u32, other_khz: u32) -> bool {
    u64::from(one_khz.abs_diff(other_khz)) * 1_000_000 <= u64::from(one_khz) * TOLERANCE_PPM
}

fn leaf(leaves: &[kvm_cpuid_entry2], number: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    leaves.iter().find(|leaf| leaf.function == number && leaf.index == index)
}

fn bits_of(leaf: &kvm_cpuid_entry2, register: &str) -> u32 {
    match register {
        "eax" => leaf.eax,
        "ebx" => leaf.ebx,
        "ecx" => leaf.ecx,
        _ => leaf.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: TimeStampCounter = TimeStampCounter { khz: 2_500_000, scales: false };

    fn leaves() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 0b111,
            ebx: 0b1010,
            ecx: 0b1100,
            edx: 0b11,
            ..Default::default()
        };
        [(0, 0), (1, 0), (7, 0), (0xd, 0), (0xd, 2)].map(|(function, index)| leaf(function, index)).to_vec()
    }

    fn saved() -> Processor {
        Processor { leaves: leaves(), tsc_khz: HERE.khz }
    }

    fn check(processor: &Processor) -> Result<(), ProcessorError> {
        processor.check(&CpuId::from_entries(&leaves()).unwrap(), HERE)
    }

    #[test]
    fn a_guest_goes_on_where_everything_is_that_it_was_shown() {
        assert_eq!(check(&saved()), Ok(()));
        let mut less = saved();
        less.leaves[2].ebx = 0b10;
        assert_eq!(check(&less), Ok(()));
    }

    #[test]
    fn a_missing_feature_is_named_by_leaf_and_bit() {
        let mut more = saved();
        more.leaves[2].ebx |= 1 << 16;
        let missing = ProcessorError::Features { leaf: 7, index: 0, register: "ebx", missing: 1 << 16 };
        assert_eq!(check(&more), Err(missing));
    }

    #[test]
    fn another_make_or_another_layout_is_refused() {
        let mut other = saved();
        other.leaves[0].edx = 7;
        assert_eq!(check(&other), Err(ProcessorError::Vendor));
        let mut other = saved();
        other.leaves[4].ebx = 576;
        assert_eq!(check(&other), Err(ProcessorError::ExtendedState { component: 2 }));
        let many = Processor { leaves: vec![leaves()[0]; 300], ..saved() };
        assert_eq!(check(&many), Err(ProcessorError::Leaves { count: 300 }));
    }

    #[test]
    fn a_counter_of_another_frequency_is_refused_unless_it_can_be_scaled() {
        let near = Processor { tsc_khz: HERE.khz + 500, ..saved() };
        assert_eq!(check(&near), Ok(()));
        let far = Processor { tsc_khz: 3_000_000, ..saved() };
        assert_eq!(check(&far), Err(ProcessorError::TimeStampCounter { saved: 3_000_000, here: 2_500_000 }));
        let scaling = TimeStampCounter { scales: true, ..HERE };
        assert_eq!(far.check(&CpuId::from_entries(&leaves()).unwrap(), scaling), Ok(()));
    }
}
