//! What keys are allowed, by tier: data, and the pure rules that lower what is asked.

use crate::sandbox::state::Terms;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BUILT_IN: &str = include_str!("tiers.toml");

/// The longest settings file of tiers that is read.
const FILE_LEN_MAX: u64 = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    pub ram_mib_max: u32,
    /// As many as the host offers if it says nothing.
    pub vcpus_max: Option<u32>,
    pub rootfs_gb_max: u32,
    idle_timeout_seconds_max: u64,
    timeout_seconds_max: u64,
    /// Sandboxes and checkpoints at once.
    pub sandboxes_max: u32,
    /// None: `persistent` is overlooked.
    pub spaces_max: u32,
}

/// By name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers(BTreeMap<String, Arc<Tier>>);

#[derive(Debug, thiserror::Error)]
pub enum TiersError {
    #[error("Could not read the tiers of {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("The file of tiers {} is longer than {FILE_LEN_MAX} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("The tiers of {} cannot be understood", path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("Tier {tier}: {setting} is 0, with which no sandbox could be made")]
    Zero { tier: String, setting: &'static str },
    #[error("There is no tier in {}", path.display())]
    None { path: PathBuf },
}

impl Tiers {
    /// Those of a file, or those that are built in.
    pub fn read(path: Option<&Path>) -> Result<Tiers, TiersError> {
        let Some(path) = path else { return Tiers::parse(BUILT_IN, Path::new("tiers.toml")) };
        let failed = |source| TiersError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
            return Err(TiersError::TooLong { path: path.to_owned() });
        }
        Tiers::parse(&std::fs::read_to_string(path).map_err(failed)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Tiers, TiersError> {
        let tiers: BTreeMap<String, Tier> =
            toml::from_str(text).map_err(|source| TiersError::Parse { path: path.to_owned(), source })?;
        if tiers.is_empty() {
            return Err(TiersError::None { path: path.to_owned() });
        }
        for (name, tier) in &tiers {
            let least = [
                ("ram_mib_max", u64::from(tier.ram_mib_max)),
                ("vcpus_max", tier.vcpus_max.map_or(1, u64::from)),
                ("rootfs_gb_max", tier.rootfs_gb_max.into()),
                ("idle_timeout_seconds_max", tier.idle_timeout_seconds_max),
                ("timeout_seconds_max", tier.timeout_seconds_max),
                ("sandboxes_max", tier.sandboxes_max.into()),
            ];
            if let Some((setting, _)) = least.into_iter().find(|(_, value)| *value == 0) {
                return Err(TiersError::Zero { tier: name.clone(), setting });
            }
        }
        Ok(Tiers(tiers.into_iter().map(|(name, tier)| (name, Arc::new(tier))).collect()))
    }

    pub fn find(&self, name: &str) -> Option<Arc<Tier>> {
        self.0.get(name).cloned()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Tier {
    pub fn terms(&self, asked: Terms) -> Terms {
        Terms {
            life: asked.life.min(Duration::from_secs(self.timeout_seconds_max)),
            idle: asked.idle.min(Duration::from_secs(self.idle_timeout_seconds_max)),
            persistent: asked.persistent && self.spaces_max > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Tiers, TiersError> {
        Tiers::parse(text, Path::new("test.toml"))
    }

    #[test]
    fn the_tiers_that_are_built_in_are_the_published_ones() {
        let tiers = Tiers::read(None).unwrap();
        let names: Vec<&str> = tiers.names().collect();
        assert_eq!(names, ["enterprise", "free", "pro", "scale"]);
        let pro = tiers.find("pro").unwrap();
        assert_eq!((pro.ram_mib_max, pro.rootfs_gb_max, pro.sandboxes_max), (4096, 16, 50));
        let day = Duration::from_secs(86_400);
        let terms = pro.terms(Terms { life: day, idle: day, persistent: true });
        assert_eq!((terms.life.as_secs(), terms.idle.as_secs()), (8 * 3600, 1800));
        let brief = Terms { life: Duration::from_secs(9), idle: Duration::from_secs(3), persistent: true };
        assert_eq!(pro.terms(brief), brief);
        assert!(!tiers.find("free").unwrap().terms(brief).persistent);
        assert!(tiers.find("gold").is_none());
    }

    #[test]
    fn a_file_with_a_mistake_is_refused_with_what_is_wrong() {
        assert!(matches!(parse("[pro]\nram = 7"), Err(TiersError::Parse { .. })));
        assert!(matches!(parse(""), Err(TiersError::None { .. })));
        let without_memory = BUILT_IN.replace("ram_mib_max = 1024", "ram_mib_max = 0");
        let error = parse(&without_memory).unwrap_err();
        assert_eq!(error.to_string(), "Tier free: ram_mib_max is 0, with which no sandbox could be made");
    }
}
