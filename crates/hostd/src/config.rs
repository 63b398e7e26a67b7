//! Settings: from arguments and the environment, once; nothing else reads either.

use crate::headroom::Reserves;
use crate::network::dns::Upstreams;
use crate::network::egress::Cidr;
use crate::sandbox::state::{Terms, TermsOffered};
use crate::space::seal::{SealingKey, SealingKeyError};
use crate::template::guest_settings::{GuestSettings, GuestSettingsError};
use crate::template::size::{RAM_STEP_MIB, SizeLimits};
use crate::tenant::{Known, Secret};
use crate::tier::{Tiers, TiersError};
use crate::traces::Collector;
use clap::builder::{FalseyValueParser, RangedU64ValueParser};
use clap::{ArgAction, Parser, ValueEnum};
use podflare_wire::limits::{DISK_GIB_MAX, MEMORY_MIB_MAX, VCPUS_MAX};
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The longest time that can be set, in seconds: ten years.
const SECONDS_MAX: u64 = 10 * 365 * 24 * 3600;

const VMM_PROGRAM: &str = "podflare-vmm";

const VCPUS: u8 = 2;

/// Prefix lengths of the sandboxes' network: from 250 to a million addresses.
const SUBNET_PREFIX_LENS: std::ops::RangeInclusive<u8> = 12..=24;

fn subnet(text: &str) -> Result<Cidr, String> {
    let subnet: Option<Cidr> = text.parse().ok();
    subnet.filter(|subnet| SUBNET_PREFIX_LENS.contains(&subnet.prefix_len())).ok_or_else(|| {
        format!(
            "it must be an IPv4 network such as 198.18.0.0/16, its prefix length {} to {}",
            SUBNET_PREFIX_LENS.start(),
            SUBNET_PREFIX_LENS.end()
        )
    })
}

fn cidr(text: &str) -> Result<Cidr, &'static str> {
    text.parse().map_err(|()| "it must be an IPv4 network such as 192.0.2.0/24")
}

fn http_url(text: &str) -> Result<String, &'static str> {
    let is_one = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
    if is_one { Ok(text.to_owned()) } else { Err("it must begin with http:// or https://") }
}

fn header(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("it must have the form name=value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn seconds() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1..=SECONDS_MAX)
}

/// Serves sandboxes on this host.
#[derive(Debug, Parser)]
#[command(name = "podflare-hostd", version)]
pub struct Arguments {
    /// Address to serve HTTP on
    #[arg(long, env = "PODFLARE_HOSTD_ADDR", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,

    /// Folder with the template's vmlinux, initramfs.cpio and rootfs.ext4
    #[arg(long, env = "PODFLARE_IMAGE_DIR", default_value = "/var/lib/podflare/image")]
    image_dir: PathBuf,

    /// The template's root disk, if not the one in the image folder: a file or a block device
    #[arg(long, env = "PODFLARE_ROOTFS")]
    rootfs: Option<PathBuf>,

    /// Folder for the disk layers of running sandboxes
    #[arg(long, env = "PODFLARE_STATE_DIR", default_value = "/var/lib/podflare/state")]
    state_dir: PathBuf,

    /// The podflare-vmm program [default: the one beside this program]
    #[arg(long, env = "PODFLARE_VMM")]
    vmm: Option<PathBuf>,

    /// Sandboxes kept ready
    #[arg(long, env = "PODFLARE_POOL_SIZE", default_value_t = 4, value_parser = clap::value_parser!(u32).range(..=1024))]
    pool_size: u32,

    /// The most sandboxes at once, beside those kept ready
    #[arg(long, env = "PODFLARE_SANDBOXES_MAX", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    sandboxes_max: u32,

    /// Memory of this host that stays free for sandboxes that run, in MiB: below it none is made [default: a sixteenth, but
    /// no more than 4096]
    #[arg(long, env = "PODFLARE_MEMORY_RESERVE_MIB")]
    memory_reserve_mib: Option<u32>,

    /// Disk below the state folder that stays free for sandboxes that run, in MiB [default: a sixteenth, but no more than 1024]
    #[arg(long, env = "PODFLARE_DISK_RESERVE_MIB")]
    disk_reserve_mib: Option<u32>,

    /// Folder with the templates that were built, one folder for each
    #[arg(long, env = "PODFLARE_TEMPLATE_DIR")]
    template_dir: Option<PathBuf>,

    /// The most templates and sizes that are kept booted, beside the default template in its own size
    #[arg(long, env = "PODFLARE_TEMPLATES_MAX", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    templates_max: u32,

    /// The most memory that a sandbox gets, in MiB: a multiple of 256
    #[arg(long, env = "PODFLARE_RAM_MIB_MAX", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(i64::from(RAM_STEP_MIB)..=i64::from(MEMORY_MIB_MAX)))]
    ram_mib_max: u32,

    /// The most vCPUs that a sandbox gets [default: as many as this host has processors]
    #[arg(long, env = "PODFLARE_VCPUS_MAX", value_parser = clap::value_parser!(u8).range(1..=VCPUS_MAX.into()))]
    vcpus_max: Option<u8>,

    /// The largest root disk that a sandbox may ask for, in GiB
    #[arg(long, env = "PODFLARE_ROOTFS_GB_MAX", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=i64::from(DISK_GIB_MAX)))]
    rootfs_gb_max: u32,

    /// vCPUs of a sandbox that asks for nothing else [default: 2, or 1 on a host of one processor]
    #[arg(long, env = "PODFLARE_VCPUS", value_parser = clap::value_parser!(u8).range(1..=VCPUS_MAX.into()))]
    vcpus: Option<u8>,

    /// Folder of what outlives hostd: its database and the Spaces
    #[arg(long, env = "PODFLARE_DATA_DIR", default_value = "/var/lib/podflare/data")]
    data_dir: PathBuf,

    /// A file with a secret that Spaces are sealed with, so that nobody without it can read them from the disk: 32 bytes or more
    #[arg(long, env = "PODFLARE_SPACES_KEY_FILE", value_name = "FILE")]
    spaces_key_file: Option<PathBuf>,

    /// API keys besides those that are made while the host runs, separated by commas
    #[arg(long, env = "PODFLARE_API_KEYS", hide_env_values = true, value_delimiter = ',')]
    api_keys: Vec<String>,

    /// The tier of these keys [default: the host's own limits]
    #[arg(long, env = "PODFLARE_API_KEYS_TIER", value_name = "TIER")]
    api_keys_tier: Option<String>,

    /// The key of whoever runs the host, with which keys are made and everything is seen
    #[arg(long, env = "PODFLARE_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,

    /// A file of tiers in place of those that are built in
    #[arg(long, env = "PODFLARE_TIERS", value_name = "FILE")]
    tiers: Option<PathBuf>,

    /// The address that clients reach this host at, if it is another than the one it listens on
    #[arg(long, env = "PODFLARE_REACHED_AT", value_name = "ADDRESS")]
    reached_at: Option<SocketAddr>,

    /// Serve anyone who reaches the address
    #[arg(long, env = "PODFLARE_AUTH_DISABLED", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    auth_disabled: bool,

    /// Seconds that the template may take to boot
    #[arg(long, env = "PODFLARE_BOOT_TIMEOUT", default_value_t = 120, value_parser = seconds())]
    boot_timeout: u64,

    /// Network that sandboxes have their addresses from: one that this host and its neighbours do not use
    #[arg(long, env = "PODFLARE_SUBNET", default_value = "198.18.0.0/16", value_parser = subnet)]
    subnet: Cidr,

    /// Networks that sandboxes reach in no mode, besides those that none ever does, as 192.0.2.0/24, separated by commas
    #[arg(long, env = "PODFLARE_NEVER", value_delimiter = ',', value_parser = cidr)]
    never: Vec<Cidr>,

    /// Resolvers that sandboxes' DNS questions go to, as ADDRESS:PORT, separated by commas [default: this host's own]
    #[arg(long, env = "PODFLARE_DNS", value_delimiter = ',')]
    dns: Vec<SocketAddr>,

    /// Give sandboxes no network, and need no rights for one
    #[arg(long, env = "PODFLARE_NO_NETWORK", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    no_network: bool,

    /// Back guests' memory with transparent huge pages: forks are several times shorter
    #[arg(long, env = "PODFLARE_HUGE_PAGES", default_value = "1", action = ArgAction::Set, value_parser = FalseyValueParser::new())]
    huge_pages: bool,

    /// Seconds without an execution after which a sandbox ends
    #[arg(long, env = "PODFLARE_IDLE_TIMEOUT", default_value_t = 300, value_parser = seconds())]
    idle_timeout: u64,

    /// The longest idle timeout that a sandbox may ask for, in seconds
    #[arg(long, env = "PODFLARE_IDLE_TIMEOUT_MAX", default_value_t = 86_400, value_parser = seconds())]
    idle_timeout_max: u64,

    /// Seconds after which a sandbox ends in any case
    #[arg(long, env = "PODFLARE_TIMEOUT", default_value_t = 1800, value_parser = seconds())]
    timeout: u64,

    /// The longest life that a sandbox may ask for, in seconds
    #[arg(long, env = "PODFLARE_TIMEOUT_MAX", default_value_t = 604_800, value_parser = seconds())]
    timeout_max: u64,

    /// Seconds that a host that is to stop takes to freeze the sandboxes that are to outlive it
    #[arg(long, env = "PODFLARE_FREEZE_TIMEOUT", default_value_t = 60, value_parser = seconds())]
    freeze_timeout: u64,

    /// Seconds of silence after which an execution's stream gets a blank line
    #[arg(long, env = "PODFLARE_HEARTBEAT", default_value_t = 10, value_parser = seconds())]
    heartbeat: u64,

    /// Certificates that guests trust besides their own: a file of PEM
    #[arg(long, env = "PODFLARE_GUEST_CA_BUNDLE", value_name = "FILE")]
    guest_ca_bundle: Option<PathBuf>,

    /// A variable of all code in guests, such as a proxy or a package index; in the environment one a line
    #[arg(
        long,
        env = "PODFLARE_GUEST_ENV",
        value_name = "NAME=VALUE",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    guest_env: Vec<String>,

    /// A collector of OpenTelemetry to send a span of each request to, as http://127.0.0.1:4318
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = http_url)]
    otlp_endpoint: Option<String>,

    /// What to send it besides, as name=value, separated by commas
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", value_name = "HEADERS", hide_env_values = true, value_delimiter = ',', value_parser = header)]
    otlp_headers: Vec<(String, String)>,

    /// What this host is called there
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME", default_value = "podflare-hostd")]
    service_name: String,

    /// Form of the log
    #[arg(long, env = "PODFLARE_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// What to log, as for tracing's EnvFilter
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,

    /// Serve pretend machines in memory, which run a toy language: for tests of clients without KVM
    #[arg(long, env = "PODFLARE_FAKE_VMM", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    fake_vmm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Settings, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Where clients reach it.
    pub reached_at: SocketAddr,
    pub keys: Known,
    pub tiers: Tiers,
    pub data_dir: PathBuf,
    pub spaces_key: Option<Arc<SealingKey>>,
    pub image: Image,
    pub state_dir: PathBuf,
    pub machines: Machines,
    pub pool_size: u32,
    pub sandboxes_max: u32,
    pub reserves: Reserves,
    pub disk_gib_max: u32,
    pub vcpus: u8,
    /// What sandboxes may ask for.
    pub sizes: SizeLimits,
    pub template_dir: Option<PathBuf>,
    pub templates_max: u32,
    pub boot_timeout: Duration,
    pub huge_pages: bool,
    pub network: NetworkSettings,
    pub terms: TermsOffered,
    pub freeze_timeout: Duration,
    pub heartbeat: Duration,
    /// Where spans go.
    pub collector: Option<Collector>,
    pub guest_settings: GuestSettings,
    pub log_format: LogFormat,
    pub log: String,
}

/// The sandboxes' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkSettings {
    Off,
    On { subnet: Cidr, never: Vec<Cidr>, upstreams: Upstreams },
}

/// More vCPUs than processors only wait for each other: with two on one, a guest's small tasks take twice
/// as long.
fn vcpus_for_this_host() -> u8 {
    VCPUS.min(processors())
}

fn processors() -> u8 {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    u8::try_from(processors).unwrap_or(u8::MAX).min(VCPUS_MAX)
}

/// What the template boots from.
#[derive(Debug, Clone)]
pub struct Image {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub rootfs: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machines {
    /// Processes of this program.
    Processes {
        program: PathBuf,
    },
    Fake,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "{reached_at} can be reached from other machines, but there are no keys: listen on 127.0.0.1 and make one \
         (`podflare keys create`), set PODFLARE_API_KEYS, or set PODFLARE_AUTH_DISABLED=1 to serve anyone"
    )]
    OpenToAll { reached_at: SocketAddr },
    #[error("The tiers cannot be used")]
    Tiers(#[from] TiersError),
    #[error("Could not find the podflare-vmm program beside this one; set PODFLARE_VMM")]
    FindProgram(#[source] std::io::Error),
    #[error(transparent)]
    SpacesKey(#[from] SealingKeyError),
    #[error("Guests cannot be told of this host's network")]
    Guests(#[from] GuestSettingsError),
}

impl Arguments {
    pub fn resolve(self) -> Result<Settings, SettingsError> {
        let machines = if self.fake_vmm {
            Machines::Fake
        } else {
            Machines::Processes { program: self.vmm.clone().map_or_else(program_beside_this, Ok)? }
        };
        let terms = TermsOffered {
            default: Terms {
                life: Duration::from_secs(self.timeout),
                idle: Duration::from_secs(self.idle_timeout),
                persistent: false,
            },
            max: Terms {
                life: Duration::from_secs(self.timeout_max.max(self.timeout)),
                idle: Duration::from_secs(self.idle_timeout_max.max(self.idle_timeout)),
                persistent: true,
            },
        };
        let vcpus = self.vcpus.unwrap_or_else(vcpus_for_this_host);
        let sizes = SizeLimits {
            ram_mib_max: self.ram_mib_max,
            vcpus_max: self.vcpus_max.unwrap_or_else(processors).max(vcpus),
        };
        Ok(Settings {
            listen: self.listen,
            reached_at: self.reached_at.unwrap_or(self.listen),
            keys: self.known_keys(),
            tiers: Tiers::read(self.tiers.as_deref())?,
            data_dir: self.data_dir,
            spaces_key: self.spaces_key_file.as_deref().map(SealingKey::read).transpose()?.map(Arc::new),
            image: Image::in_folder(&self.image_dir, self.rootfs),
            state_dir: self.state_dir,
            machines,
            pool_size: self.pool_size,
            sandboxes_max: self.sandboxes_max,
            reserves: Reserves {
                memory: self.memory_reserve_mib.map(|mib| u64::from(mib) << 20),
                disk: self.disk_reserve_mib.map(|mib| u64::from(mib) << 20),
            },
            disk_gib_max: self.rootfs_gb_max,
            vcpus,
            sizes,
            template_dir: self.template_dir,
            templates_max: self.templates_max,
            boot_timeout: Duration::from_secs(self.boot_timeout),
            huge_pages: self.huge_pages,
            network: if self.no_network {
                NetworkSettings::Off
            } else {
                let upstreams =
                    if self.dns.is_empty() { Upstreams::default() } else { Upstreams::These(self.dns) };
                NetworkSettings::On { subnet: self.subnet, never: self.never, upstreams }
            },
            terms,
            freeze_timeout: Duration::from_secs(self.freeze_timeout),
            heartbeat: Duration::from_secs(self.heartbeat),
            collector: self.otlp_endpoint.map(|endpoint| Collector {
                url: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
                headers: self.otlp_headers.into_iter().collect(),
                service: self.service_name,
            }),
            guest_settings: GuestSettings::read(self.guest_ca_bundle.as_deref(), &self.guest_env)?,
            log_format: self.log_format,
            log: self.log,
        })
    }

    fn known_keys(&self) -> Known {
        let keys = self.api_keys.iter().map(|key| key.trim()).filter(|key| !key.is_empty());
        Known {
            keys: keys.map(|key| Secret(key.to_owned())).collect(),
            tier: self.api_keys_tier.clone(),
            admin: self.admin_key.clone().map(Secret),
            open_to_all: self.auth_disabled,
        }
    }
}

impl Settings {
    /// Whether anyone who reaches the host may be let in: nobody else but this machine's users do, or that is what was asked for.
    pub fn check_open(&self) -> Result<(), SettingsError> {
        match self.keys.open_to_all || self.reached_at.ip().is_loopback() {
            true => Ok(()),
            false => Err(SettingsError::OpenToAll { reached_at: self.reached_at }),
        }
    }
}

impl Image {
    fn in_folder(dir: &Path, rootfs: Option<PathBuf>) -> Image {
        Image {
            kernel: dir.join("vmlinux"),
            initramfs: dir.join("initramfs.cpio"),
            rootfs: rootfs.unwrap_or_else(|| dir.join("rootfs.ext4")),
        }
    }
}

fn program_beside_this() -> Result<PathBuf, SettingsError> {
    let this = std::env::current_exe().map_err(SettingsError::FindProgram)?;
    Ok(this.with_file_name(VMM_PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(arguments: &[&str]) -> Result<Settings, SettingsError> {
        let program = std::iter::once(&"podflare-hostd");
        Arguments::try_parse_from(program.chain(arguments)).unwrap().resolve()
    }

    #[test]
    fn an_address_that_others_reach_needs_keys_or_a_word() {
        let is_open = |arguments: &[&str]| resolve(arguments).unwrap().check_open().is_ok();
        assert!(is_open(&[]));
        assert!(is_open(&["--listen", "10.0.2.15:7070", "--reached-at", "127.0.0.1:7070"]));
        assert!(is_open(&["--listen", "0.0.0.0:7070", "--auth-disabled"]));
        for others in [&["--listen", "0.0.0.0:7070"][..], &["--reached-at", "[::]:7070"]] {
            assert!(!is_open(others), "{others:?}");
        }
        let keys = resolve(&["--api-keys", "pf_live_a, pf_live_b,"]).unwrap().keys.keys;
        assert_eq!(keys, ["pf_live_a", "pf_live_b"].map(|key| Secret(key.to_owned())));
    }

    #[test]
    fn the_image_folder_names_all_files_but_one_that_is_named_itself() {
        let settings = resolve(&["--image-dir", "/image", "--rootfs", "/dev/vdb"]).unwrap();
        assert_eq!(settings.image.kernel, Path::new("/image/vmlinux"));
        assert_eq!(settings.image.initramfs, Path::new("/image/initramfs.cpio"));
        assert_eq!(settings.image.rootfs, Path::new("/dev/vdb"));
    }

    #[test]
    fn a_default_over_its_maximum_raises_the_maximum() {
        let settings = resolve(&["--timeout", "1000000"]).unwrap();
        assert_eq!(settings.terms.terms(None, None).life, Duration::from_secs(1_000_000));
    }

    #[test]
    fn keys_are_not_shown() {
        let settings = resolve(&["--api-keys", "pf_live_secret", "--admin-key", "pf_admin_secret"]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
