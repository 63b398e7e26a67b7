//! What nft(8) lists as JSON: counters, and what there is of an interface in the rules.

use super::super::driver::{InterfaceId, Usage};
use super::rules::{COUNTERS, HOOKS, TAP_PREFIX, tap_name};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// What one of the sets has counted, by interface.
fn counted(listing: &[u8], unit: &str) -> Result<Vec<(InterfaceId, u64)>, serde_json::Error> {
    let listing: Value = serde_json::from_slice(listing)?;
    let elements = objects(&listing, "set").filter_map(|set| set["elem"].as_array()).flatten();
    let counters = elements
        .map(|element| &element["elem"])
        .filter_map(|element| Some((id_of(element["val"].as_str()?)?, element["counter"][unit].as_u64()?)));
    Ok(counters.collect())
}

/// Takes the listings of the three sets.
pub(super) fn usages(
    [sent, received, connections]: [&[u8]; 3],
) -> Result<HashMap<InterfaceId, Usage>, serde_json::Error> {
    let mut usages: HashMap<InterfaceId, Usage> = HashMap::new();
    for (id, bytes) in counted(sent, "bytes")? {
        usages.entry(id).or_default().sent_bytes = bytes;
    }
    for (id, bytes) in counted(received, "bytes")? {
        usages.entry(id).or_default().received_bytes = bytes;
    }
    for (id, packets) in counted(connections, "packets")? {
        usages.entry(id).or_default().connections = packets;
    }
    Ok(usages)
}

/// The interface with this name.
fn id_of(tap: &str) -> Option<InterfaceId> {
    tap.strip_prefix(TAP_PREFIX)?.parse().ok().map(InterfaceId)
}

/// What there is of interfaces beside themselves.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Residue {
    /// Elements of maps: the map, and the interface's name.
    pub(super) hooks: Vec<(String, String)>,
    pub(super) chains: Vec<String>,
    pub(super) sets: Vec<String>,
    /// Elements of sets with counters, as with hooks.
    pub(super) counted: Vec<(String, String)>,
}

/// Takes the listing of the whole table.
pub(super) fn residue(listing: &[u8], ids: &[InterfaceId]) -> Result<Residue, serde_json::Error> {
    let listing: Value = serde_json::from_slice(listing)?;
    let taps: HashSet<String> = ids.iter().map(|id| tap_name(*id)).collect();
    let numbers: HashSet<String> = ids.iter().map(|id| id.0.to_string()).collect();
    // Parts of a list are called by their kind, the interface's number and the revision.
    let is_part = |name: &str| {
        let mut words = name.rsplit('_');
        words.next().is_some_and(|revision| revision.parse::<u32>().is_ok())
            && words.next().is_some_and(|number| numbers.contains(number))
    };
    let mut residue = Residue::default();
    for map in objects(&listing, "map") {
        let Some(name) = map["name"].as_str().filter(|name| HOOKS.contains(name)) else { continue };
        let elements = map["elem"].as_array().into_iter().flatten().filter_map(|element| element[0].as_str());
        let ours = elements.filter(|tap| taps.contains(*tap));
        residue.hooks.extend(ours.map(|tap| (name.to_owned(), tap.to_owned())));
    }
    for chain in objects(&listing, "chain").filter_map(|chain| chain["name"].as_str()) {
        if is_part(chain) {
            residue.chains.push(chain.to_owned());
        }
    }
    for set in objects(&listing, "set") {
        let Some(name) = set["name"].as_str() else { continue };
        if is_part(name) {
            residue.sets.push(name.to_owned());
        } else if COUNTERS.contains(&name) {
            let elements = set["elem"].as_array().into_iter().flatten();
            let named = elements.filter_map(|element| element["elem"]["val"].as_str().or(element.as_str()));
            let ours = named.filter(|tap| taps.contains(*tap));
            residue.counted.extend(ours.map(|tap| (name.to_owned(), tap.to_owned())));
        }
    }
    Ok(residue)
}

fn objects<'a>(listing: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    objects.filter_map(move |object| object.get(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interfaces_counters_are_found_among_all_others() {
        let listing = |set: &str, own: u64| {
            serde_json::json!({"nftables": [{"metainfo": {"version": "1.0.6"}}, {"set": {"name": set, "elem": [
                {"elem": {"val": "pf1", "counter": {"packets": own, "bytes": own * 60}}},
                {"elem": {"val": "pf12", "counter": {"packets": 9, "bytes": 999}}}]}}]})
            .to_string()
            .into_bytes()
        };
        let nothing = br#"{"nftables": [{"set": {"name": "received"}}]}"#;
        let [sent, connections] = [listing("sent", 2), listing("connections", 3)];
        let expected = Usage { sent_bytes: 120, received_bytes: 0, connections: 3 };
        let found = usages([&sent, nothing, &connections]).unwrap();
        assert_eq!(found[&InterfaceId(1)], expected);
        assert_eq!((found.len(), found[&InterfaceId(12)].sent_bytes), (2, 999));
        assert!(usages([b"no JSON", nothing, nothing]).is_err());
    }

    #[test]
    fn what_is_left_of_an_interface_is_told_from_what_is_anothers() {
        let listing = br#"{"nftables": [
            {"map": {"name": "lists", "elem": [["pf1", {"goto": {"target": "list_1_7"}}], ["pf12", {"drop": null}]]}},
            {"map": {"name": "replies"}},
            {"chain": {"name": "list_1_7"}}, {"chain": {"name": "list_12_1"}}, {"chain": {"name": "from_guest"}},
            {"set": {"name": "name_ports_1_6"}}, {"set": {"name": "networks_11_1"}},
            {"set": {"name": "sent", "elem": [{"elem": {"val": "pf1"}}, {"elem": {"val": "pf11"}}]}},
            {"set": {"name": "open", "elem": ["pf1"]}}]}"#;
        let owned = |name: &str| name.to_owned();
        let expected = Residue {
            hooks: vec![(owned("lists"), owned("pf1"))],
            chains: vec![owned("list_1_7")],
            sets: vec![owned("name_ports_1_6")],
            counted: vec![(owned("sent"), owned("pf1")), (owned("open"), owned("pf1"))],
        };
        assert_eq!(residue(listing, &[InterfaceId(1), InterfaceId(4)]).unwrap(), expected);
        assert!(residue(b"no JSON", &[]).is_err());
    }
}
