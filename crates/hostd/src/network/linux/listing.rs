//! Counters, out of what nft(8) lists as JSON.

use super::super::driver::Usage;
use serde_json::Value;

/// What has been counted for an interface; nothing was where nothing is listed.
pub(super) fn usage(listing: &[u8], tap: &str) -> Result<Usage, serde_json::Error> {
    let listing: Value = serde_json::from_slice(listing)?;
    Ok(Usage {
        sent_bytes: counted(&listing, "sent", tap, "bytes"),
        received_bytes: counted(&listing, "received", tap, "bytes"),
        connections: counted(&listing, "connections", tap, "packets"),
    })
}

fn counted(listing: &Value, set: &str, tap: &str, unit: &str) -> u64 {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let elements = objects.map(|object| &object["set"]).filter(|found| found["name"] == set);
    let elements = elements.filter_map(|found| found["elem"].as_array()).flatten();
    let mut ours = elements.map(|element| &element["elem"]).filter(|element| element["val"] == tap);
    ours.next().and_then(|element| element["counter"][unit].as_u64()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interfaces_counters_are_found_among_all_others() {
        let listing = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "sent", "elem": [
                {"elem": {"val": "pf1", "counter": {"packets": 2, "bytes": 120}}},
                {"elem": {"val": "pf12", "counter": {"packets": 9, "bytes": 999}}}]}},
            {"set": {"name": "received"}},
            {"set": {"name": "connections", "elem": [
                {"elem": {"val": "pf1", "counter": {"packets": 3, "bytes": 180}}}]}}]}"#;
        let expected = Usage { sent_bytes: 120, received_bytes: 0, connections: 3 };
        assert_eq!(usage(listing, "pf1").unwrap(), expected);
        assert_eq!(usage(listing, "pf3").unwrap(), Usage::default());
        assert!(usage(b"no JSON", "pf1").is_err());
    }
}
