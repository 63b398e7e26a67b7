//! How programs of this machine reach the network: its certificates, proxies and package indexes, as its
//! environment has them. For the time of a build, and for guests that are to have the same.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// By which programs are told of a bundle of certificates, the most general first.
pub const CA_BUNDLE_VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
];

/// Where distributions keep the certificates that all programs trust.
const SYSTEM_CA_BUNDLES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// In both cases of their letters.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", NO_PROXY_VARIABLE];

const NO_PROXY_VARIABLE: &str = "no_proxy";

const INDEX_VARIABLES: [&str; 7] = [
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    FIND_LINKS,
    NO_INDEX,
    "PIP_DEFAULT_TIMEOUT",
    "NPM_CONFIG_REGISTRY",
];

/// Words between any blanks, also on several lines.
const LISTS: [&str; 3] = ["PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", FIND_LINKS];

const NO_INDEX: &str = "PIP_NO_INDEX";
/// Where else packages come from, without which `NO_INDEX` lets pip install nothing.
const FIND_LINKS: &str = "PIP_FIND_LINKS";

const PIP_CONFIG_VARIABLE: &str = "PIP_CONFIG_FILE";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineSettings {
    /// The bundle that the environment names.
    pub ca_bundle: Option<PathBuf>,
    /// The bundle that this machine's programs trust if nothing is said.
    pub system_ca_bundle: Option<PathBuf>,
    /// Variables with proxies and package indexes.
    pub variables: BTreeMap<String, String>,
    /// pip's own file of settings, the user's before the machine's.
    pub pip_config: Option<PathBuf>,
}

impl MachineSettings {
    pub fn of_this_machine() -> MachineSettings {
        MachineSettings::read(&|name| env::var_os(name), &|path| path.is_file())
    }

    fn read(variable: &dyn Fn(&str) -> Option<OsString>, is_file: &dyn Fn(&Path) -> bool) -> MachineSettings {
        let filled = |name: &str| variable(name).filter(|value| !value.is_empty());
        let file = |name: &str| filled(name).map(PathBuf::from).filter(|path| is_file(path));
        let either_case = |name: &str| filled(name).or_else(|| filled(&other_case(name)));
        let names = PROXY_VARIABLES.iter().chain(&INDEX_VARIABLES);
        let value = |name: &&str| {
            let value = either_case(name)?.into_string().ok()?;
            let value = match LISTS.contains(name) {
                true => value.split_whitespace().collect::<Vec<&str>>().join(" "),
                // Such as a line's end behind it.
                false => value.trim().to_owned(),
            };
            (!value.is_empty() && !value.contains(char::is_control)).then(|| ((*name).to_owned(), value))
        };
        let home = filled("HOME").map(PathBuf::from);
        let pip_config = file(PIP_CONFIG_VARIABLE).or_else(|| {
            let of_user = home
                .iter()
                .flat_map(|home| [".config/pip/pip.conf", ".pip/pip.conf"].map(|path| home.join(path)));
            of_user.chain([PathBuf::from("/etc/pip.conf")]).find(|path| is_file(path))
        });
        MachineSettings {
            ca_bundle: CA_BUNDLE_VARIABLES.iter().find_map(|name| file(name)),
            system_ca_bundle: SYSTEM_CA_BUNDLES.map(PathBuf::from).into_iter().find(|path| is_file(path)),
            variables: names.filter_map(value).collect(),
            pip_config,
        }
    }

    /// The variables that guests may have: without those that hold a password or name a place of this machine, and
    /// what is of no use without them. Second, the names of those that are left out.
    pub fn for_guests(&self) -> (BTreeMap<String, String>, Vec<String>) {
        let (mut shared, mut kept): (BTreeMap<_, _>, BTreeMap<_, _>) = self
            .variables
            .clone()
            .into_iter()
            .partition(|(name, value)| value.split_whitespace().all(|word| is_for_all(name, word)));
        if !shared.contains_key(FIND_LINKS) {
            kept.extend(shared.remove_entry(NO_INDEX));
        }
        (shared, kept.into_keys().collect())
    }
}

fn other_case(name: &str) -> String {
    match name.contains(|c: char| c.is_ascii_lowercase()) {
        true => name.to_ascii_uppercase(),
        false => name.to_ascii_lowercase(),
    }
}

fn is_for_all(name: &str, word: &str) -> bool {
    let (scheme, rest) = word.split_once("://").unwrap_or_default();
    let authority = match scheme {
        "" => word,
        _ => rest.split('/').next().unwrap_or(rest),
    };
    let is_file = word.starts_with('/') || scheme == "file";
    // Those that no proxy is asked for are this machine's in a guest, too: its own.
    let is_here = name != NO_PROXY_VARIABLE && is_this_machine(authority);
    !is_file && !authority.contains('@') && !is_here
}

/// Whether a host, with or without a port, is whichever machine asks.
fn is_this_machine(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| {
            let address = address.to_canonical();
            address.is_loopback() || address.is_unspecified()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], files: &[&str]) -> MachineSettings {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        MachineSettings::read(&variable, &|path| files.iter().any(|file| path == Path::new(file)))
    }

    #[test]
    fn a_machine_without_settings_has_none() {
        assert_eq!(settings(&[], &[]), MachineSettings::default());
    }

    #[test]
    fn a_bundle_counts_only_if_it_is_there() {
        let variables = [("SSL_CERT_FILE", "/gone.pem"), ("PIP_CERT", "/ours.pem")];
        let found = settings(&variables, &["/ours.pem", "/etc/ssl/certs/ca-certificates.crt"]);
        assert_eq!(found.ca_bundle, Some("/ours.pem".into()));
        assert_eq!(found.system_ca_bundle, Some("/etc/ssl/certs/ca-certificates.crt".into()));
    }

    #[test]
    fn variables_are_found_in_both_cases_of_their_letters() {
        let found = settings(&[("HTTPS_PROXY", "http://p.example:3128"), ("npm_config_registry", "x")], &[]);
        assert_eq!(found.variables["https_proxy"], "http://p.example:3128");
        assert_eq!(found.variables["NPM_CONFIG_REGISTRY"], "x");
    }

    #[test]
    fn a_list_on_several_lines_becomes_one_line() {
        let found = settings(
            &[
                ("PIP_EXTRA_INDEX_URL", "\n  https://one.example/\n  https://two.example/\n"),
                ("PIP_INDEX_URL", "https://index.example/simple\n"),
                ("NPM_CONFIG_REGISTRY", "https://a.example\nhttps://b.example"),
                ("PIP_FIND_LINKS", " \n"),
            ],
            &[],
        );
        let variables: Vec<_> = found.variables.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let expected = [
            ("PIP_EXTRA_INDEX_URL", "https://one.example/ https://two.example/"),
            ("PIP_INDEX_URL", "https://index.example/simple"),
        ];
        assert_eq!(variables, expected);
    }

    #[test]
    fn pip_in_a_guest_is_not_told_to_use_no_index_where_it_has_nothing_else() {
        let of =
            |links: &str| settings(&[("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", links)], &[]).for_guests();
        assert_eq!(of("/opt/wheels"), (BTreeMap::new(), vec![FIND_LINKS.to_owned(), NO_INDEX.to_owned()]));
        assert_eq!(of("").1, [NO_INDEX]);
        assert_eq!(of("https://wheels.example/").0.into_keys().collect::<Vec<_>>(), [FIND_LINKS, NO_INDEX]);
    }

    #[test]
    fn the_users_settings_of_pip_come_before_the_machines() {
        let variables = [("HOME", "/home/me")];
        let files = ["/etc/pip.conf", "/home/me/.config/pip/pip.conf"];
        assert_eq!(settings(&variables, &files).pip_config, Some(files[1].into()));
        assert_eq!(settings(&variables, &files[..1]).pip_config, Some(files[0].into()));
    }

    #[test]
    fn passwords_and_places_of_this_machine_are_not_for_guests() {
        let found = settings(
            &[
                ("PIP_INDEX_URL", "https://me:secret@index.example/simple"),
                ("PIP_EXTRA_INDEX_URL", "https://index.example/@scope https://other.example/"),
                ("PIP_FIND_LINKS", "/opt/wheels"),
                ("no_proxy", "localhost,127.0.0.1"),
            ],
            &[],
        );
        let (shared, kept) = found.for_guests();
        assert_eq!(shared.keys().collect::<Vec<_>>(), ["PIP_EXTRA_INDEX_URL", "no_proxy"]);
        assert_eq!(kept, ["PIP_FIND_LINKS", "PIP_INDEX_URL"]);
    }

    #[test]
    fn a_proxy_on_this_machine_is_not_one_in_a_guest() {
        for (value, is_shared) in [
            ("http://127.0.0.1:3128", false),
            ("127.8.9.1:3128", false),
            ("http://localhost:3128/", false),
            ("http://LOCALHOST.:3128", false),
            ("http://[::1]:3128", false),
            ("http://[::ffff:127.0.0.1]:3128", false),
            ("0.0.0.0:3128", false),
            ("http://proxy.example:3128", true),
            ("10.1.2.3:3128", true),
            ("http://[2001:db8::1]:3128", true),
        ] {
            let (shared, _) = settings(&[("http_proxy", value)], &[]).for_guests();
            assert_eq!(!shared.is_empty(), is_shared, "{value}");
        }
    }
}
