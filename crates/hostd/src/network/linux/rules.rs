//! The packet filter's rules, as nft(8) reads them. Text only: nothing here runs anything.
//!
//! A packet of a sandbox goes through `from_guest`: what nobody may reach, then the sandbox's own list, if it has
//! one, then what is somebody's own. A list marks the connections that it lets through with its revision. Those of an
//! earlier revision are looked at again, packet by packet, in both directions, so that a change holds at once.

use super::super::driver::{Change, Gone, InterfaceId, Resolved};
use super::super::egress::{Cidr, Egress, NEVER, PRIVATE, Target};
use std::fmt::Write;
use std::net::Ipv4Addr;

/// Names of interfaces: of the sandboxes', with a number behind it, and of the link to the host's own network.
pub(super) const TAP_PREFIX: &str = "pf";
pub(super) const UPLINK: &str = "uplink";

/// Sandboxes that are counted, those included that have not been forgotten yet.
const COUNTED_MAX: u32 = 131_072;

pub(super) fn tap_name(id: InterfaceId) -> String {
    format!("{TAP_PREFIX}{}", id.0)
}

/// The rules of the sandboxes' own network namespace.
pub(super) fn namespace(subnet: Cidr, gateway: Ipv4Addr) -> String {
    let never = list(NEVER.iter().chain([&subnet]));
    let private = list(PRIVATE.iter().filter(|cidr| !cidr.overlaps(subnet)));
    format!(
        "table ip podflare {{
    set never {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {never} }} }}
    set private {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {private} }} }}
    map lists {{ type ifname : verdict; }}
    map replies {{ type ifname : verdict; }}
    set sent {{ type ifname; size {COUNTED_MAX}; flags dynamic; }}
    set received {{ type ifname; size {COUNTED_MAX}; flags dynamic; }}
    set connections {{ type ifname; size {COUNTED_MAX}; flags dynamic; }}

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
    revision: u32,
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

    fn define(&self, script: &mut String, rules: &[super::super::egress::Rule]) {
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

    fn unhook(&self, script: &mut String) {
        let tap = tap_name(self.id);
        for map in ["lists", "replies"] {
            writeln!(script, "delete element ip podflare {map} {{ \"{tap}\" }}").ok();
        }
    }

    fn remove(&self, script: &mut String) {
        for chain in ["list", "replies"] {
            writeln!(script, "delete chain ip podflare {}", self.part(chain)).ok();
        }
        for (is_of_names, has_port) in [(false, false), (false, true), (true, false), (true, true)] {
            writeln!(script, "delete set ip podflare {}", self.set(is_of_names, has_port)).ok();
        }
    }
}

/// What an interface's change means for the rules; nothing if both let out the same.
pub(super) fn change(change: &Change) -> String {
    let mut script = String::new();
    let former = List { id: change.id, revision: change.revision - 1 };
    let had_list = matches!(change.from, Egress::Allow(_));
    if had_list {
        former.unhook(&mut script);
    }
    if let Egress::Allow(rules) = &change.to {
        List { id: change.id, revision: change.revision }.define(&mut script, rules);
    }
    if had_list {
        former.remove(&mut script);
    }
    script
}

pub(super) fn resolved(id: InterfaceId, revision: u32, add: &[Resolved], remove: &[Resolved]) -> String {
    let list = List { id, revision };
    let mut script = String::new();
    for (verb, all) in [("add", add), ("delete", remove)] {
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

/// Removes what is left of interfaces. Counters that may never have been made are made first, because nft refuses to
/// remove what is not there.
pub(super) fn forget(gone: &[Gone]) -> String {
    let mut script = String::new();
    for Gone { id, list_revision } in gone {
        let tap = tap_name(*id);
        for set in ["sent", "received", "connections"] {
            writeln!(script, "add element ip podflare {set} {{ \"{tap}\" }}").ok();
            writeln!(script, "delete element ip podflare {set} {{ \"{tap}\" }}").ok();
        }
        if let Some(revision) = *list_revision {
            let list = List { id: *id, revision };
            list.unhook(&mut script);
            list.remove(&mut script);
        }
    }
    script
}

fn list<'a>(cidrs: impl Iterator<Item = &'a Cidr>) -> String {
    cidrs.map(Cidr::to_string).collect::<Vec<_>>().join(", ")
}

fn elements(all: &[String]) -> String {
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}
