//! What a sandbox may reach: everything that is public, nothing, or what is on a list. Pure rules.

use podflare_api::network::{AllowList, EGRESS_RULES_MAX, Egress as Wanted};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The longest domain name, in characters.
const NAME_LEN_MAX: usize = 253;
const LABEL_LEN_MAX: usize = 63;

/// Reachable in no mode and by no rule: this host and its link (where clouds keep their metadata service; Azure's and
/// Alibaba's have more), broadcast and multicast, and addresses that nobody has. The sandboxes' own network comes on top.
pub const NEVER: [Cidr; 7] = [
    cidr(0, 0, 8),
    cidr(127, 0, 8),
    cidr(169, 254, 16),
    cidr(224, 0, 4),
    cidr(240, 0, 4),
    Cidr { network: Ipv4Addr::new(168, 63, 129, 16), prefix_len: 32 },
    Cidr { network: Ipv4Addr::new(100, 100, 100, 200), prefix_len: 32 },
];

/// Reachable only by a rule that names the addresses: networks that are somebody's own.
pub const PRIVATE: [Cidr; 6] = [
    cidr(10, 0, 8),
    cidr(100, 64, 10),
    cidr(172, 16, 12),
    cidr(192, 168, 16),
    Cidr { network: Ipv4Addr::new(192, 0, 0, 0), prefix_len: 24 },
    cidr(198, 18, 15),
];

const fn cidr(a: u8, b: u8, prefix_len: u8) -> Cidr {
    Cidr { network: Ipv4Addr::new(a, b, 0, 0), prefix_len }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Egress {
    /// Every address that is not somebody's own.
    #[default]
    On,
    /// No packet leaves.
    Off,
    Allow(Vec<Rule>),
}

/// One entry of a list. Without a port it is about every protocol, with one about TCP and UDP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub target: Target,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    Addresses(Cidr),
    /// This name and no other, in lower case.
    Name(String),
    /// Every name that ends with a dot and this one.
    NamesUnder(String),
}

/// Addresses with a common beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix_len: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    #[error("The list has {count} entries; the most is {EGRESS_RULES_MAX}")]
    TooMany { count: usize },
    #[error(
        "{rule:?} is neither a domain (example.org, *.example.org), an IPv4 address, nor a network (10.1.0.0/16), \
         each with a port or without (example.org:443)"
    )]
    NotARule { rule: String },
    #[error("{rule:?} is within {never}, which no sandbox may reach")]
    Never { rule: String, never: Cidr },
}

impl Egress {
    pub fn parse(wanted: &Wanted) -> Result<Egress, EgressError> {
        let rules = match wanted {
            Wanted::Switch(true) => return Ok(Egress::On),
            Wanted::Switch(false) => return Ok(Egress::Off),
            Wanted::List(list) => &list.allow,
        };
        if rules.len() > EGRESS_RULES_MAX {
            return Err(EgressError::TooMany { count: rules.len() });
        }
        rules.iter().map(|rule| Rule::parse(rule)).collect::<Result<_, _>>().map(Egress::Allow)
    }

    /// As a client would have said it.
    pub fn view(&self) -> Wanted {
        match self {
            Egress::On => Wanted::Switch(true),
            Egress::Off => Wanted::Switch(false),
            Egress::Allow(rules) => {
                Wanted::List(AllowList { allow: rules.iter().map(Rule::to_string).collect() })
            }
        }
    }

    /// The ports of a name that may be asked for: `None` among them means all. Empty if it may not.
    pub fn ports_of(&self, name: &str) -> Vec<Option<u16>> {
        match self {
            Egress::On => vec![None],
            Egress::Off => Vec::new(),
            Egress::Allow(rules) => {
                rules.iter().filter(|rule| rule.is_about(name)).map(|rule| rule.port).collect()
            }
        }
    }

    /// Whether an address that a name stands for may be reached by it. A name of somebody else's must not lead
    /// into private networks.
    pub fn takes_from_dns(&self, address: Ipv4Addr) -> bool {
        let is_allowed = || match self {
            Egress::On | Egress::Off => false,
            Egress::Allow(rules) => rules
                .iter()
                .any(|rule| matches!(rule.target, Target::Addresses(cidr) if cidr.contains(address))),
        };
        !NEVER.iter().any(|cidr| cidr.contains(address)) && (!is_private(address) || is_allowed())
    }
}

/// Whether an address is somebody's own, and so reached only by a rule that has it.
pub fn is_private(address: Ipv4Addr) -> bool {
    PRIVATE.iter().any(|cidr| cidr.contains(address))
}

impl Rule {
    fn parse(text: &str) -> Result<Rule, EgressError> {
        let not_a_rule = || EgressError::NotARule { rule: text.chars().take(NAME_LEN_MAX).collect() };
        let (target, port) = match text.rsplit_once(':') {
            Some((target, port)) => (target, Some(parse_port(port).ok_or_else(not_a_rule)?)),
            None => (text, None),
        };
        if let Ok(cidr) = target.parse() {
            return match NEVER
                .iter()
                .find(|never| never.overlaps(cidr) && never.prefix_len <= cidr.prefix_len)
            {
                Some(never) => Err(EgressError::Never { rule: text.to_owned(), never: *never }),
                None => Ok(Rule { target: Target::Addresses(cidr), port }),
            };
        }
        let name = target.to_ascii_lowercase();
        let target = match name.strip_prefix("*.") {
            Some(parent) if is_name(parent) => Target::NamesUnder(parent.to_owned()),
            None if is_name(&name) => Target::Name(name),
            _ => return Err(not_a_rule()),
        };
        Ok(Rule { target, port })
    }

    fn is_about(&self, name: &str) -> bool {
        match &self.target {
            Target::Name(own) => own == name,
            Target::NamesUnder(parent) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            Target::Addresses(_) => false,
        }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0)
}

/// A domain name with a letter in its last label, which no address has.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_LEN_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= NAME_LEN_MAX
        && name.split('.').all(is_label)
        && name.rsplit('.').next().is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_alphabetic()))
}

impl Cidr {
    pub fn new(address: Ipv4Addr, prefix_len: u8) -> Option<Cidr> {
        (prefix_len <= 32)
            .then(|| Cidr { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix_len)), prefix_len })
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix_len) == self.network.to_bits()
    }

    pub fn overlaps(self, other: Cidr) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The address so many after the first one.
    pub fn nth(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits().wrapping_add(offset))
    }

    /// How many addresses there are, as far as it can be said in 32 bits.
    pub fn size(self) -> u32 {
        (!mask(self.prefix_len)).saturating_add(1)
    }

    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Cidr, ()> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, len)) if len.bytes().all(|byte| byte.is_ascii_digit()) => {
                (address, len.parse().map_err(|_| ())?)
            }
            Some(_) => return Err(()),
            None => (text, 32),
        };
        Cidr::new(address.parse().map_err(|_| ())?, prefix_len).ok_or(())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Addresses(cidr) => cidr.fmt(f),
            Target::Name(name) => f.write_str(name),
            Target::NamesUnder(parent) => write!(f, "*.{parent}"),
        }?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allow(rules: &[&str]) -> Result<Egress, EgressError> {
        let allow = rules.iter().map(|rule| (*rule).to_owned()).collect();
        Egress::parse(&Wanted::List(AllowList { allow }))
    }

    #[test]
    fn a_list_names_domains_and_networks_with_ports_and_without() {
        let rules = ["example.org", "*.example.org:443", "10.1.0.0/16:443", "192.0.2.7"];
        let egress = allow(&rules).unwrap();
        assert_eq!(
            egress.view(),
            Wanted::List(AllowList {
                allow: vec![
                    "example.org".into(),
                    "*.example.org:443".into(),
                    "10.1.0.0/16:443".into(),
                    "192.0.2.7/32".into()
                ]
            })
        );
    }

    #[test]
    fn what_is_no_rule_is_refused_by_name() {
        for rule in [
            "",
            "*",
            "*.",
            ".",
            "exa mple.org",
            "example..org",
            "10.0.0.0/33",
            "10.0.0.0/",
            "example.org:0",
            "example.org:99999",
            "example.org:+80",
            "http://example.org",
            "::1",
            "[::1]:80",
            "1.2.3",
            "a/8",
            "*.1.2",
        ] {
            assert_eq!(allow(&[rule]), Err(EgressError::NotARule { rule: rule.into() }), "{rule}");
        }
        let many = vec!["example.org"; EGRESS_RULES_MAX + 1];
        assert_eq!(allow(&many), Err(EgressError::TooMany { count: many.len() }));
    }

    #[test]
    fn no_rule_reaches_the_metadata_service_or_this_host() {
        for rule in [
            "169.254.169.254",
            "127.0.0.1:80",
            "169.254.0.0/16",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
        ] {
            assert!(matches!(allow(&[rule]), Err(EgressError::Never { .. })), "{rule}");
        }
        // The whole Internet is a rule; what is never reachable is left out of it elsewhere.
        assert!(allow(&["0.0.0.0/0"]).is_ok());
    }

    #[test]
    fn a_name_is_asked_for_if_it_is_on_the_list() {
        let egress = allow(&["Example.org", "*.cdn.example:443", "*.cdn.example:80", "10.0.0.0/8"]).unwrap();
        assert_eq!(egress.ports_of("example.org"), [None]);
        assert_eq!(egress.ports_of("a.b.cdn.example"), [Some(443), Some(80)]);
        for name in ["www.example.org", "cdn.example", "xcdn.example", ".cdn.example", "10.0.0.1", ""] {
            assert_eq!(egress.ports_of(name), [], "{name}");
        }
        assert_eq!(Egress::On.ports_of("any.thing"), [None]);
        assert_eq!(Egress::Off.ports_of("any.thing"), []);
    }

    #[test]
    fn a_name_does_not_lead_into_private_networks() {
        let egress = allow(&["example.org", "10.1.0.0/16"]).unwrap();
        let takes = |address: [u8; 4]| egress.takes_from_dns(Ipv4Addr::from(address));
        assert!(takes([203, 0, 113, 1]));
        assert!(takes([10, 1, 2, 3]), "it is on the list itself");
        assert!(
            ![[10, 2, 0, 1], [192, 168, 0, 1], [169, 254, 169, 254], [127, 0, 0, 1]].into_iter().any(takes)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_rule_or_is_refused(text in "\\PC{0,40}") {
            if let Ok(rule) = Rule::parse(&text) {
                prop_assert_eq!(Rule::parse(&rule.to_string()), Ok(rule));
            }
        }

        #[test]
        fn networks_overlap_if_they_have_an_address_in_common(
            a in any::<u32>(), b in any::<u32>(), a_len in 0..=32_u8, b_len in 0..=32_u8
        ) {
            let a = Cidr::new(Ipv4Addr::from_bits(a), a_len).unwrap();
            let b = Cidr::new(Ipv4Addr::from_bits(b), b_len).unwrap();
            prop_assert_eq!(a.overlaps(b), b.overlaps(a));
            if a.contains(b.nth(b.size() - 1)) {
                prop_assert!(a.overlaps(b));
            }
        }
    }
}
