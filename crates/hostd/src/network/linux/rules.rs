//! The packet filter's rules, as nft(8) reads them. Text only: nothing here runs anything.
//!
//! A packet of a sandbox goes through `from_guest`: what nobody may reach, then the sandbox's own list, if it has
//! one, then what is somebody's own. A list marks the connections that it lets through with its revision. Those of an
//! earlier revision are looked at again, packet by packet, in both directions, so that a change holds at once.

use super::super::driver::{Change, Former, InterfaceId, Resolved, Revision};
use super::super::egress::{Cidr, Egress, NEVER, PRIVATE, Rule, Target};
use super::listing::Residue;
use std::fmt::Write;
use std::net::Ipv4Addr;

/// The maps from an interface to the chains of its list.
pub(super) const HOOKS: [&str; 2] = ["lists", "replies"];

/// The sets that count, by interface.
pub(super) const COUNTERS: [&str; 4] = ["sent", "received", "connections", "open"];

/// Names of interfaces: of the sandboxes', with a number behind it, and of the link to the host's own network.
pub(super) const TAP_PREFIX: &str = "pf";
pub(super) const UPLINK: &str = "uplink";

/// Connections that a sandbox has open at once, those included that the kernel has not forgotten yet. All of the host's share
/// one table, which has 262,144 entries on most.
const OPEN_MAX: u32 = 4096;

/// Sandboxes that are counted, those included that have not been forgotten yet.
const COUNTED_MAX: u32 = 131_072;

pub(super) fn tap_name(id: InterfaceId) -> String {
    format!("{TAP_PREFIX}{}", id.0)
}

/// The rules of the sandboxes' own network namespace.
pub(super) fn namespace(subnet: Cidr, gateway: Ipv4Addr, never: &[Cidr]) -> String {
    let never = list(NEVER.iter().chain([&subnet]).chain(never));
    let private = list(PRIVATE.iter());
    format!(
        "table ip podflare {{
    set never {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {never} }} }}
    set private {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {private} }} }}
    map lists {{ type ifname : verdict; }}
    map replies {{ type ifname : verdict; }}
    set sent {{ type ifname; size {COUNTED_MAX}; flags dynamic; }}
    set received {{ type ifname; size {COUNTED_MAX}; flags dynamic; }}
    set connections {{ type ifname; size {COUNTED_MAX}; flags dynamic; }}
    set open {{ type ifname; size {COUNTED_MAX}; flags dynamic; }}

    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname \"{TAP_PREFIX}*\" fib saddr . iif oif missing drop
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname \"{TAP_PREFIX}*\" ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
        iifname \"{TAP_PREFIX}*\" ip daddr {gateway} icmp type echo-request accept
        iifname \"{TAP_PREFIX}*\" reject with icmp type admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname \"{TAP_PREFIX}*\" oifname \"{UPLINK}\" jump from_guest
        iifname \"{UPLINK}\" oifname \"{TAP_PREFIX}*\" jump to_guest
        iifname \"{TAP_PREFIX}*\" reject with icmp type admin-prohibited
    }}
    chain from_guest {{
        ct state invalid drop
        ip daddr @never reject with icmp type admin-prohibited
        iifname vmap @lists
        ip daddr @private reject with icmp type admin-prohibited
        goto leave
    }}
    chain leave {{
        ct state new add @open {{ iifname ct count over {OPEN_MAX} }} reject with icmp type admin-prohibited
        ct state new update @connections {{ iifname counter }}
        update @sent {{ iifname counter }}
        accept
    }}
    chain to_guest {{
        ct state != {{ established, related }} drop
        oifname vmap @replies
        goto arrive
    }}
    chain arrive {{
        update @received {{ oifname counter }}
        accept
    }}
}}
"
    )
}

/// The rules of the host's own network, for what comes through the link with this name.
pub(super) fn host(link: &str, subnet: Cidr) -> String {
    format!(
        "table ip {link}
delete table ip {link}
table ip {link} {{
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname \"{link}\" fib daddr type {{ local, broadcast, multicast }} drop
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname \"{link}\" drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname \"{link}\" tcp flags syn tcp option maxseg size set rt mtu
        oifname \"{link}\" ct state != {{ established, related }} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != \"{link}\" masquerade
    }}
}}
"
    )
}

pub(super) fn remove_host(link: &str) -> String {
    format!("delete table ip {link}\n")
}

/// The names of what one revision of a list consists of.
struct List {
    id: InterfaceId,
    revision: Revision,
}

impl List {
    fn part(&self, kind: &str) -> String {
        format!("{kind}_{}_{}", self.id.0, self.revision)
    }

    fn set(&self, is_of_names: bool, has_port: bool) -> String {
        self.part(match (is_of_names, has_port) {
            (false, false) => "networks",
            (false, true) => "network_ports",
            (true, false) => "names",
            (true, true) => "name_ports",
        })
    }

    fn define(&self, script: &mut String, rules: &[Rule]) {
        let mut networks = Vec::new();
        let mut network_ports = Vec::new();
        for rule in rules {
            match (&rule.target, rule.port) {
                (Target::Addresses(cidr), None) => networks.push(cidr.to_string()),
                (Target::Addresses(cidr), Some(port)) => network_ports.push(format!("{cidr} . {port}")),
                (Target::Name(_) | Target::NamesUnder(_), _) => {}
            }
        }
        let mark = self.revision;
        let [networks_set, network_ports_set] = [self.set(false, false), self.set(false, true)];
        let [names_set, name_ports_set] = [self.set(true, false), self.set(true, true)];
        let [chain, replies] = [self.part("list"), self.part("replies")];
        let tap = tap_name(self.id);
        let networks = elements(&networks);
        let network_ports = elements(&network_ports);
        write!(
            script,
            "table ip podflare {{
    set {networks_set} {{ type ipv4_addr; flags interval; auto-merge; {networks} }}
    set {network_ports_set} {{ type ipv4_addr . inet_service; flags interval; {network_ports} }}
    set {names_set} {{ type ipv4_addr; }}
    set {name_ports_set} {{ type ipv4_addr . inet_service; }}
    chain {chain} {{
        ct mark {mark} goto leave
        ip daddr @{networks_set} ct mark set {mark} goto leave
        ip daddr @{names_set} ct mark set {mark} goto leave
        meta l4proto {{ tcp, udp }} ip daddr . th dport @{network_ports_set} ct mark set {mark} goto leave
        meta l4proto {{ tcp, udp }} ip daddr . th dport @{name_ports_set} ct mark set {mark} goto leave
        reject with icmp type admin-prohibited
    }}
    chain {replies} {{
        ct mark {mark} goto arrive
        drop
    }}
}}
add element ip podflare lists {{ \"{tap}\" : goto {chain} }}
add element ip podflare replies {{ \"{tap}\" : goto {replies} }}
"
        )
        .ok();
    }

    fn former(id: InterfaceId, revision: Revision) -> Residue {
        let list = List { id, revision };
        let tap = tap_name(id);
        let sets = [(false, false), (false, true), (true, false), (true, true)];
        Residue {
            hooks: HOOKS.iter().map(|map| ((*map).to_owned(), tap.clone())).collect(),
            chains: ["list", "replies"].map(|kind| list.part(kind)).to_vec(),
            sets: sets.map(|(is_of_names, has_port)| list.set(is_of_names, has_port)).to_vec(),
            counted: Vec::new(),
        }
    }
}

impl Residue {
    /// Hooks go before the chains that they lead to, and chains before the sets that they look into.
    fn unhook(&self, script: &mut String) {
        for (map, tap) in &self.hooks {
            writeln!(script, "delete element ip podflare {map} {{ \"{tap}\" }}").ok();
        }
    }

    fn remove(&self, script: &mut String) {
        for chain in &self.chains {
            writeln!(script, "delete chain ip podflare {chain}").ok();
        }
        for set in &self.sets {
            writeln!(script, "delete set ip podflare {set}").ok();
        }
        for (set, tap) in &self.counted {
            writeln!(script, "delete element ip podflare {set} {{ \"{tap}\" }}").ok();
        }
    }
}

/// Removes what is left of interfaces.
pub(super) fn forget(residue: &Residue) -> String {
    let mut script = String::new();
    residue.unhook(&mut script);
    residue.remove(&mut script);
    script
}

/// What an interface's change means for the rules; nothing if both let out the same. `residue` is what is there of it, if
/// that had to be looked up.
pub(super) fn change(change: &Change, residue: Option<Residue>) -> String {
    let mut script = String::new();
    let former = residue.or_else(|| match &change.from {
        Former::Known { egress: Egress::Allow(_), revision } => Some(List::former(change.id, *revision)),
        Former::Known { .. } | Former::Unknown => None,
    });
    if let Some(former) = &former {
        former.unhook(&mut script);
    }
    if let Egress::Allow(rules) = &change.to {
        List { id: change.id, revision: change.revision }.define(&mut script, rules);
    }
    if let Some(former) = &former {
        former.remove(&mut script);
    }
    script
}

/// What is removed is added first: nft refuses to remove what is not there.
pub(super) fn resolved(id: InterfaceId, revision: Revision, add: &[Resolved], remove: &[Resolved]) -> String {
    let list = List { id, revision };
    let mut script = String::new();
    for (verb, all) in [("add", add), ("add", remove), ("delete", remove)] {
        for has_port in [false, true] {
            let chosen = all.iter().filter(|resolved| resolved.port.is_some() == has_port);
            let chosen: Vec<String> = chosen.map(element).collect();
            if !chosen.is_empty() {
                let set = list.set(true, has_port);
                writeln!(script, "{verb} element ip podflare {set} {{ {} }}", chosen.join(", ")).ok();
            }
        }
    }
    script
}

fn element(resolved: &Resolved) -> String {
    match resolved.port {
        Some(port) => format!("{} . {port}", resolved.address),
        None => resolved.address.to_string(),
    }
}

fn list<'a>(cidrs: impl Iterator<Item = &'a Cidr>) -> String {
    cidrs.map(Cidr::to_string).collect::<Vec<_>>().join(", ")
}

fn elements(all: &[String]) -> String {
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}
