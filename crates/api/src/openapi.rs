//! The OpenAPI document of `/v1`, built from the types of this crate and one table of operations.
//!
//! A copy lies in `openapi.json` at the repository's root, and a test fails when it is stale.
//! `PODFLARE_WRITE_OPENAPI=1 cargo test --release -p podflare-api` writes it anew.

use crate::capacity::{Capacity, TemplateCapacity};
use crate::checkpoint::{CheckpointList, CheckpointRequest, CheckpointView, RestoreRequest};
use crate::error::ErrorBody;
use crate::exec::{
    ExecEvent, ExecEventKind, ExecList, ExecRequest, ExecState, ExecView, ExitReason, Language,
};
use crate::id::{CheckpointId, ExecId, PtyId, SandboxId};
use crate::pty::{CreatePty, PtyChunk, PtyEvent, PtyInfo, PtyInput, PtyRead, PtyResize};
use crate::sandbox::{
    ChildFailure, CreateSandbox, ForkRequest, Forked, SandboxCreated, SandboxList, SandboxState, SandboxView,
};
use utoipa::OpenApi;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Content, InfoBuilder, LicenseBuilder, PathItem, Ref, Required, Response, ResponseBuilder,
};

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    id: &'static str,
    summary: &'static str,
    request: Option<&'static str>,
    success: Success,
    /// Error answers beside 401 and 403, and those about every body, with what they mean.
    errors: &'static [(&'static str, &'static str)],
    /// No key is asked for.
    pub open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Delete,
}

#[derive(Debug, Clone, Copy)]
enum Success {
    Json(&'static str),
    JsonArray(&'static str),
    /// One event a line, with blank lines as heartbeats.
    Events(&'static str),
    Text,
    Document,
    Empty,
}

const UNKNOWN: (&str, &str) =
    ("404", "There is no such sandbox, or it has ended; the text says when and why");
const UNKNOWN_CHECKPOINT: (&str, &str) =
    ("404", "There is no such checkpoint, or it has ended; the text says when and why");
const BAD_BODY: (&str, &str) = ("400", "The body cannot be understood, or asks for something out of range");
const FULL: (&str, &str) = (
    "503",
    "The host is starting, full or shutting down, or busy: then `Retry-After` says when to come back",
);
const CROWDED: (&str, &str) =
    ("503", "The host reads too many long bodies; `Retry-After` says when to come back");
const LONG_BODY: (&str, &str) = ("413", "The body is too long");
const UNKNOWN_PTY: (&str, &str) = ("404", "There is no such sandbox or terminal; the text says which");
const CROWDED_PTY: (&str, &str) = ("429", "Too many clients are at the sandbox's terminals");
const FAILED: (&str, &str) = ("500", "The machine could not do it; the text says why");

/// Every endpoint of the contract.
pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: Method::Get,
        path: "/v1/healthz",
        id: "healthz",
        summary: "`ok` as soon as sandboxes can be created",
        request: None,
        success: Success::Text,
        errors: &[FULL],
        open: true,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes",
        id: "create_sandbox",
        summary: "Creates a sandbox; it is ready when this answers",
        request: Some("CreateSandbox"),
        success: Success::Json("SandboxCreated"),
        errors: &[BAD_BODY, ("404", "There is no such template"), LONG_BODY, FAILED, FULL],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes",
        id: "list_sandboxes",
        summary: "Lists sandboxes, oldest first",
        request: None,
        success: Success::Json("SandboxList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}",
        id: "inspect_sandbox",
        summary: "Looks at one sandbox",
        request: None,
        success: Success::Json("SandboxView"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/sandboxes/{id}",
        id: "delete_sandbox",
        summary: "Ends a sandbox and its checkpoints; the same answer when there is none",
        request: None,
        success: Success::Empty,
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/exec",
        id: "exec",
        summary: "Runs code and streams its events; the last is always `exit`. The header `podflare-exec-id` names it",
        request: Some("ExecRequest"),
        success: Success::Events("ExecEvent"),
        errors: &[
            BAD_BODY,
            UNKNOWN,
            ("413", "The code is too long"),
            ("429", "Too many executions wait in this sandbox, or have events that nobody has read"),
            CROWDED,
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/execs",
        id: "list_execs",
        summary: "Lists the executions that run or wait in a sandbox, in the order of their requests",
        request: None,
        success: Success::Json("ExecList"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/sandboxes/{id}/execs/{exec}",
        id: "cancel_exec",
        summary: "Cancels an execution; the same answer when there is none. Its own stream tells its end",
        request: None,
        success: Success::Empty,
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty",
        id: "create_pty",
        summary: "Starts a program in a terminal of its own and streams its output, from `pty_ready` to `pty_exit`",
        request: Some("CreatePty"),
        success: Success::Events("PtyEvent"),
        errors: &[BAD_BODY, UNKNOWN, LONG_BODY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/pty",
        id: "list_ptys",
        summary: "Lists a sandbox's terminals, oldest first",
        request: None,
        success: Success::JsonArray("PtyInfo"),
        errors: &[UNKNOWN, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/pty/{pty}/attach",
        id: "attach_pty",
        summary: "Streams the output of a terminal that is kept, the last 1 MiB, and then what comes",
        request: None,
        success: Success::Events("PtyEvent"),
        errors: &[UNKNOWN_PTY, CROWDED_PTY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/read",
        id: "read_pty",
        summary: "Output of a terminal from a place on; waits for it if there is none yet",
        request: Some("PtyRead"),
        success: Success::Json("PtyChunk"),
        errors: &[BAD_BODY, UNKNOWN_PTY, LONG_BODY, CROWDED_PTY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/input",
        id: "input_pty",
        summary: "Types something at a terminal, which has taken it when this answers",
        request: Some("PtyInput"),
        success: Success::Empty,
        errors: &[BAD_BODY, UNKNOWN_PTY, ("409", "The program has ended"), LONG_BODY, CROWDED_PTY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/resize",
        id: "resize_pty",
        summary: "Changes a terminal's size",
        request: Some("PtyResize"),
        success: Success::Empty,
        errors: &[BAD_BODY, UNKNOWN_PTY, ("409", "The program has ended"), LONG_BODY, CROWDED_PTY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/kill",
        id: "kill_pty",
        summary: "Kills a terminal's program and what it has in the foreground; the same answer when it has ended",
        request: None,
        success: Success::Empty,
        errors: &[UNKNOWN_PTY, CROWDED_PTY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/ping",
        id: "ping",
        summary: "Asks the guest's agent for an answer; `guest` in `Server-Timing` is its round trip",
        request: None,
        success: Success::Empty,
        errors: &[
            UNKNOWN,
            ("429", "Too many pings wait for this sandbox's guest"),
            ("503", "The agent in the sandbox has died and is started again"),
            ("504", "The guest has not answered in time"),
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/replay",
        id: "replay",
        summary: "The sandbox's most recent events, of all its executions",
        request: None,
        success: Success::Events("ExecEvent"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/fork",
        id: "fork",
        summary: "Copies a sandbox as it is now; every child is ready when this answers",
        request: Some("ForkRequest"),
        success: Success::Json("Forked"),
        errors: &[BAD_BODY, UNKNOWN, LONG_BODY, FAILED, FULL],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{parent}/merge_into/{winner}",
        id: "merge_into",
        summary: "Puts the winner's machine in the parent's place; the winner's own id is gone",
        request: None,
        success: Success::Empty,
        errors: &[("400", "Parent and winner are the same sandbox"), UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/checkpoints",
        id: "checkpoint",
        summary: "Keeps a sandbox's state as it is now; the sandbox runs on",
        request: Some("CheckpointRequest"),
        success: Success::Json("CheckpointView"),
        errors: &[
            BAD_BODY,
            UNKNOWN,
            LONG_BODY,
            ("429", "The sandbox has too many checkpoints"),
            FAILED,
            FULL,
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/checkpoints",
        id: "list_checkpoints_of_sandbox",
        summary: "Lists a sandbox's checkpoints, oldest first, also when it has ended but not been deleted",
        request: None,
        success: Success::Json("CheckpointList"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/restore",
        id: "restore",
        summary: "Puts a copy of a checkpoint in its sandbox's place; both ids and the checkpoint stay",
        request: Some("RestoreRequest"),
        success: Success::Empty,
        errors: &[
            ("400", "The body cannot be understood, or the checkpoint is another sandbox's"),
            ("404", "There is no such sandbox or checkpoint, or it has ended; the text says which and why"),
            LONG_BODY,
            FAILED,
            FULL,
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/checkpoints",
        id: "list_checkpoints",
        summary: "Lists checkpoints, oldest first",
        request: None,
        success: Success::Json("CheckpointList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/checkpoints/{checkpoint}",
        id: "inspect_checkpoint",
        summary: "Looks at one checkpoint",
        request: None,
        success: Success::Json("CheckpointView"),
        errors: &[UNKNOWN_CHECKPOINT],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/checkpoints/{checkpoint}",
        id: "delete_checkpoint",
        summary: "Ends a checkpoint; the same answer when there is none",
        request: None,
        success: Success::Empty,
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/checkpoints/{checkpoint}/fork",
        id: "fork_checkpoint",
        summary: "Makes sandboxes of a checkpoint; every child is ready when this answers",
        request: Some("ForkRequest"),
        success: Success::Json("Forked"),
        errors: &[BAD_BODY, UNKNOWN_CHECKPOINT, LONG_BODY, FAILED, FULL],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/capacity",
        id: "capacity",
        summary: "What the host has ready and what it has given out",
        request: None,
        success: Success::Json("Capacity"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/openapi.json",
        id: "openapi",
        summary: "This document",
        request: None,
        success: Success::Document,
        errors: &[],
        open: true,
    },
];

#[derive(OpenApi)]
#[openapi(components(schemas(
    Capacity,
    CheckpointId,
    CheckpointList,
    CheckpointRequest,
    CheckpointView,
    ChildFailure,
    CreatePty,
    CreateSandbox,
    ErrorBody,
    ExecEvent,
    ExecEventKind,
    ExecId,
    ExecList,
    ExecRequest,
    ExecState,
    ExecView,
    ExitReason,
    ForkRequest,
    Forked,
    Language,
    PtyChunk,
    PtyEvent,
    PtyId,
    PtyInfo,
    PtyInput,
    PtyRead,
    PtyResize,
    RestoreRequest,
    SandboxCreated,
    SandboxId,
    SandboxList,
    SandboxState,
    SandboxView,
    TemplateCapacity,
)))]
struct Schemas;

const BEARER: &str = "api_key";

/// The document as JSON text, with a newline at its end.
pub fn document() -> String {
    let mut document = Schemas::openapi();
    document.info = InfoBuilder::new()
        .title("Podflare")
        .version("v1")
        .description(Some("Sandboxes for AI agents that can be forked while they run."))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    if let Some(components) = &mut document.components {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    }
    for endpoint in ENDPOINTS {
        let path = document.paths.paths.entry(endpoint.path.to_owned()).or_default();
        path.merge_operations(item(endpoint));
    }
    #[expect(clippy::expect_used, reason = "the document is made of maps with text keys")]
    let mut text = document.to_pretty_json().expect("the document encodes");
    text.push('\n');
    text
}

fn item(endpoint: &Endpoint) -> PathItem {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(endpoint.id))
        .summary(Some(endpoint.summary))
        .request_body(endpoint.request.map(|schema| {
            let content = Content::new(Some(Ref::from_schema_name(schema)));
            RequestBodyBuilder::new()
                .content("application/json", content)
                .required(Some(Required::True))
                .build()
        }));
    for name in path_parameters(endpoint.path) {
        let schema = match name {
            "checkpoint" => "CheckpointId",
            "exec" => "ExecId",
            "pty" => "PtyId",
            _ => "SandboxId",
        };
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(Ref::from_schema_name(schema))),
        );
    }
    let (status, response) = success(endpoint.success);
    operation = operation.response(status, response);
    for (status, meaning) in endpoint.errors {
        operation = operation.response(*status, error(meaning));
    }
    if endpoint.request.is_some() {
        operation = operation
            .response("408", error("Nothing more of the body came for too long"))
            .response("415", error("The body is not JSON, or does not say so"));
    }
    if !endpoint.open {
        operation = operation
            .response("401", error("No key, or a wrong one; only where the host has keys"))
            .security(SecurityRequirement::new(BEARER, Vec::<String>::new()));
    }
    operation = operation
        .response("403", error("The request comes from a web page; only where the host has no keys"));
    let method = match endpoint.method {
        Method::Get => HttpMethod::Get,
        Method::Post => HttpMethod::Post,
        Method::Delete => HttpMethod::Delete,
    };
    PathItem::new(method, operation)
}

fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn success(success: Success) -> (&'static str, Response) {
    let answer = |description: &str, content_type: &str, content: Content| {
        ("200", ResponseBuilder::new().description(description).content(content_type, content).build())
    };
    match success {
        Success::Json(schema) => {
            answer("Done", "application/json", Content::new(Some(Ref::from_schema_name(schema))))
        }
        Success::JsonArray(schema) => {
            let array = ArrayBuilder::new().items(Ref::from_schema_name(schema));
            answer("Done", "application/json", Content::new(Some(array)))
        }
        Success::Events(schema) => answer(
            "One event a line; blank lines are heartbeats",
            "application/x-ndjson",
            Content::new(Some(Ref::from_schema_name(schema))),
        ),
        Success::Text => answer("`ok`", "text/plain", Content::default()),
        Success::Document => answer("An OpenAPI document", "application/json", Content::default()),
        Success::Empty => ("204", ResponseBuilder::new().description("Done").build()),
    }
}

fn error(meaning: &str) -> Response {
    let content = Content::new(Some(Ref::from_schema_name("ErrorBody")));
    ResponseBuilder::new().description(meaning).content("application/json", content).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_document_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");
        if std::env::var_os("PODFLARE_WRITE_OPENAPI").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            checked_in == document(),
            "openapi.json is stale; PODFLARE_WRITE_OPENAPI=1 cargo test --release -p podflare-api writes it"
        );
    }

    #[test]
    fn every_reference_in_the_document_has_its_schema() {
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let text = document.to_string();
        for name in text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
