//! The `Range` header, as far as it is heeded: one range of bytes. A server may answer any other with the whole file.

use axum::http::HeaderMap;
use axum::http::header::{IF_RANGE, RANGE};
use podflare_wire::files::Range;

pub(super) fn asked_for(headers: &HeaderMap) -> Option<Range> {
    // Whether the file is still the same is not known when it is asked for; the whole file is always right.
    if headers.contains_key(IF_RANGE) {
        return None;
    }
    parse(headers.get(RANGE)?.to_str().ok()?)
}

fn parse(text: &str) -> Option<Range> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let number = |text: &str| text.trim().parse::<u64>().ok().filter(|_| !text.contains('+'));
    match range.split_once('-')? {
        (first, last) if first.trim().is_empty() => Some(Range::Suffix { len: number(last)? }),
        (first, last) if last.trim().is_empty() => Some(Range::From { first: number(first)? }),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Range::Between { first, last })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_understood() {
        assert_eq!(parse("bytes=5-9"), Some(Range::Between { first: 5, last: 9 }));
        assert_eq!(parse("Bytes=5-"), Some(Range::From { first: 5 }));
        assert_eq!(parse("bytes=-9"), Some(Range::Suffix { len: 9 }));
    }

    #[test]
    fn any_other_is_not_heeded() {
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=9-5",
            "bytes=1-2,5-6",
            "lines=1-2",
            "bytes=+1-2",
            "bytes=a-",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
