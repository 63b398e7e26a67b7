//! What sandboxes may have, and what they get for what they ask: pure.

use crate::tier::Tier;
use podflare_wire::limits::VCPUS_MAX;

/// Memory comes in steps of so many MiB, the least one included, so that there are few sizes.
pub const RAM_STEP_MIB: u32 = 256;

/// Memory and processors of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    pub ram_mib: u32,
    pub vcpus: u8,
}

/// The most that a sandbox gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimits {
    pub ram_mib_max: u32,
    pub vcpus_max: u8,
}

impl SizeLimits {
    /// What is left of it for a tier.
    pub fn within(self, tier: &Tier) -> SizeLimits {
        let vcpus_max = tier.vcpus_max.map_or(u8::MAX, |max| u8::try_from(max).unwrap_or(u8::MAX));
        SizeLimits {
            ram_mib_max: self.ram_mib_max.min(tier.ram_mib_max),
            vcpus_max: self.vcpus_max.min(vcpus_max),
        }
    }

    /// The size that a sandbox gets for what was asked, and otherwise for what its template says.
    pub fn fit(&self, ram_mib: Option<u32>, vcpus: Option<u32>, template: Size) -> Size {
        let ram_mib = ram_mib.unwrap_or(template.ram_mib);
        let steps_max = (self.ram_mib_max / RAM_STEP_MIB).max(1);
        let steps = ram_mib.div_ceil(RAM_STEP_MIB).clamp(1, steps_max);
        let vcpus =
            vcpus.unwrap_or(template.vcpus.into()).clamp(1, self.vcpus_max.clamp(1, VCPUS_MAX).into());
        Size { ram_mib: steps * RAM_STEP_MIB, vcpus: u8::try_from(vcpus).unwrap_or(VCPUS_MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: SizeLimits = SizeLimits { ram_mib_max: 8192, vcpus_max: 4 };
    const TEMPLATE: Size = Size { ram_mib: 1024, vcpus: 2 };

    #[test]
    fn what_is_not_asked_for_is_the_templates() {
        assert_eq!(LIMITS.fit(None, None, TEMPLATE), TEMPLATE);
        assert_eq!(LIMITS.fit(Some(2048), None, TEMPLATE), Size { ram_mib: 2048, vcpus: 2 });
        assert_eq!(LIMITS.fit(None, Some(1), TEMPLATE), Size { ram_mib: 1024, vcpus: 1 });
    }

    #[test]
    fn memory_is_rounded_up_and_both_are_held_within_what_is_offered() {
        let ram = |asked| LIMITS.fit(Some(asked), None, TEMPLATE).ram_mib;
        assert_eq!([0, 1, 256, 257, 1000, 8192, u32::MAX].map(ram), [256, 256, 256, 512, 1024, 8192, 8192]);
        let vcpus = |asked| LIMITS.fit(None, Some(asked), TEMPLATE).vcpus;
        assert_eq!([0, 1, 4, 5, u32::MAX].map(vcpus), [1, 1, 4, 4, 4]);
        let huge = Size { ram_mib: 65_536, vcpus: 32 };
        assert_eq!(LIMITS.fit(None, None, huge), Size { ram_mib: 8192, vcpus: 4 }, "also for a template");
    }

    proptest! {
        #[test]
        fn every_size_is_a_step_within_the_limits(
            ram in any::<Option<u32>>(), vcpus in any::<Option<u32>>(),
            ram_mib_max in 256_u32..=65_536, vcpus_max in 1_u8..=VCPUS_MAX
        ) {
            let size = SizeLimits { ram_mib_max, vcpus_max }.fit(ram, vcpus, TEMPLATE);
            prop_assert!(size.ram_mib.is_multiple_of(RAM_STEP_MIB));
            prop_assert!((RAM_STEP_MIB..=ram_mib_max).contains(&size.ram_mib));
            prop_assert!((1..=vcpus_max).contains(&size.vcpus));
        }
    }
}
