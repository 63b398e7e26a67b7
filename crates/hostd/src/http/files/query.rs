//! Queries of file operations. Paths are bytes there: what is percent-encoded need not be text.

use super::super::error::ApiError;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode;
use podflare_wire::files::PATH_LEN_MAX;
use std::convert::Infallible;

/// A query's names and values, decoded as forms are: `+` is a space.
#[derive(Debug)]
pub(in super::super) struct Query(Vec<(Vec<u8>, Vec<u8>)>);

#[derive(Debug, thiserror::Error)]
pub(in super::super) enum QueryError {
    #[error("say in the query which file is meant: ?{name}=/root/file")]
    Missing { name: &'static str },
    #[error("{name} is empty, holds a NUL, or has more than {PATH_LEN_MAX} bytes")]
    Path { name: &'static str },
    #[error("{name} is true or false")]
    Flag { name: &'static str },
    #[error("{name} is a whole number from 1 on")]
    Number { name: &'static str },
    #[error("{name} is a whole number from 0 on")]
    Whole { name: &'static str },
    #[error("{name} is an octal number up to 7777")]
    Mode { name: &'static str },
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query, Infallible> {
        Ok(Query::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Query {
    fn parse(text: &str) -> Query {
        let decode = |text: &str| percent_decode(text.replace('+', " ").as_bytes()).collect::<Vec<u8>>();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    fn value(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(given, _)| given == name.as_bytes()).map(|(_, value)| &value[..])
    }

    fn text(&self, name: &str) -> Option<&str> {
        // What is not text is nothing that is asked for.
        self.value(name).map(|value| std::str::from_utf8(value).unwrap_or("?"))
    }

    pub(super) fn path(&self, name: &'static str) -> Result<Vec<u8>, ApiError> {
        let path = self.value(name).ok_or(QueryError::Missing { name })?;
        if path.is_empty() || path.contains(&0) || path.len() > PATH_LEN_MAX {
            return Err(QueryError::Path { name }.into());
        }
        Ok(path.to_vec())
    }

    pub(in crate::http) fn flag(&self, name: &'static str) -> Result<bool, ApiError> {
        match self.text(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(QueryError::Flag { name }.into()),
        }
    }

    /// From 0 on.
    pub(in crate::http) fn whole(&self, name: &'static str) -> Result<Option<u64>, ApiError> {
        let number = self.text(name).map(|text| text.parse().ok());
        number.map(|number| number.ok_or(QueryError::Whole { name }.into())).transpose()
    }

    pub(in crate::http) fn number(&self, name: &'static str) -> Result<Option<u32>, ApiError> {
        let number = self.text(name).map(|text| text.parse().ok().filter(|number| *number > 0));
        number.map(|number| number.ok_or(QueryError::Number { name }.into())).transpose()
    }

    pub(super) fn mode(&self) -> Result<Option<u32>, ApiError> {
        let parse = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        let mode = self.text("mode").map(parse);
        mode.map(|mode| mode.ok_or(QueryError::Mode { name: "mode" }.into())).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_any_bytes_but_nul() {
        let path = |query: &str| Query::parse(query).path("path").ok();
        assert_eq!(path("path=/root/a"), Some(b"/root/a".to_vec()));
        assert_eq!(path("x=1&path=%2Froot%2F%FF+%2B%26"), Some(b"/root/\xff +&".to_vec()));
        assert_eq!(path("path=/a=b&path=/c"), Some(b"/a=b".to_vec()));
        assert_eq!(path(&format!("path={}", "x".repeat(PATH_LEN_MAX))).unwrap().len(), PATH_LEN_MAX);
        for bad in ["", "path", "path=", "Path=/a", "path=/a%00b"] {
            assert_eq!(path(bad), None, "{bad}");
        }
        assert_eq!(path(&format!("path={}", "x".repeat(PATH_LEN_MAX + 1))), None);
    }

    #[test]
    fn flags_numbers_and_modes_are_what_they_say_or_refused() {
        let query = Query::parse("a=true&b=0&c=yes&d=7&e=0&f=-1&g=%ff");
        assert_eq!(query.flag("a").ok(), Some(true));
        assert_eq!(query.flag("b").ok(), Some(false));
        assert_eq!(query.flag("none").ok(), Some(false));
        assert!(query.flag("c").is_err());
        assert!(query.flag("g").is_err());
        assert_eq!(query.number("d").ok(), Some(Some(7)));
        assert_eq!(query.number("none").ok(), Some(None));
        assert!(query.number("e").is_err());
        assert_eq!(query.whole("e").ok(), Some(Some(0)));
        assert!(query.whole("f").is_err());
        assert!(query.number("f").is_err());
        for (text, mode) in [("mode=0644", Some(0o644)), ("mode=7777", Some(0o7777)), ("", None)] {
            assert_eq!(Query::parse(text).mode().ok(), Some(mode), "{text}");
        }
        for text in ["mode=", "mode=0888", "mode=10000", "mode=rw"] {
            assert!(Query::parse(text).mode().is_err(), "{text}");
        }
    }
}
