//! The one error body.

use crate::sandbox::ChildFailure;
use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// What failed and what to do, in a sentence for a person.
    pub error: String,
    /// Of a file operation: Linux's name of the error, such as `ENOENT`. Left out elsewhere, so that a 404 without it means
    /// that there is no such sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Of a fork: the children that could not be made. Left out elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<ChildFailure>,
}
