//! The OpenAPI document of `/v1`, built from the types of this crate and one table of operations.
//!
//! A copy lies in `openapi.json` at the repository's root, and a test fails when it is stale.
//! `PODFLARE_WRITE_OPENAPI=1 cargo test --release -p podflare-api` writes it anew.

use crate::capacity::{Capacity, TemplateCapacity};
use crate::checkpoint::{CheckpointList, CheckpointRequest, CheckpointView, RestoreRequest};
use crate::error::ErrorBody;
use crate::event::{EventList, Happening, LifecycleEvent};
use crate::exec::{
    ExecEvent, ExecEventKind, ExecList, ExecRequest, ExecState, ExecView, ExitReason, Language,
};
use crate::file::{FileEntry, FileEvent, FileEventKind, FileKind, FileList};
use crate::id::{CheckpointId, ExecId, KeyId, PtyId, SandboxId, SpaceId, WebhookId};
use crate::key::{CreateKey, KeyCreated, KeyList, KeyView};
use crate::network::{AllowList, Egress, NetworkView, SetEgress};
use crate::pty::{CreatePty, PtyChunk, PtyEvent, PtyInfo, PtyInput, PtyRead, PtyResize};
use crate::sandbox::{
    ChildFailure, CreateSandbox, ExtendSandbox, ForkRequest, Forked, SandboxCreated, SandboxList,
    SandboxState, SandboxView,
};
use crate::space::{ResumeSpace, SpaceList, SpaceView};
use crate::template::{TakeState, TemplateList, TemplateProgress, TemplateSize, TemplateState, TemplateView};
use crate::usage::{UsageDay, UsageList};
use crate::webhook::{CreateWebhook, WebhookCreated, WebhookList, WebhookView};
use utoipa::OpenApi;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{ArrayBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Content, InfoBuilder, LicenseBuilder, Object, PathItem, Ref, Required, Response, ResponseBuilder,
};

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    id: &'static str,
    summary: &'static str,
    query: &'static [QueryParameter],
    request: Request,
    success: Success,
    /// Error answers beside 401 and 403, and those about every body, with what they mean.
    errors: &'static [(&'static str, &'static str)],
    /// No key is asked for.
    pub open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Patch,
    Post,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    None,
    Json(&'static str),
    /// Any bytes, without a limit.
    Bytes,
}

#[derive(Debug)]
struct QueryParameter {
    name: &'static str,
    meaning: &'static str,
    required: bool,
    kind: QueryKind,
}

#[derive(Debug, Clone, Copy)]
enum QueryKind {
    Text,
    Flag,
    Number,
}

#[derive(Debug, Clone, Copy)]
enum Success {
    Json(&'static str),
    JsonArray(&'static str),
    /// One event a line, with blank lines as heartbeats.
    Events(&'static str),
    /// One state a line until the last, with blank lines as heartbeats.
    Lines(&'static str),
    Bytes,
    Archive,
    Text,
    Document,
    Empty,
}

const UNKNOWN: (&str, &str) =
    ("404", "There is no such sandbox, or it has ended; the text says when and why");
const UNKNOWN_CHECKPOINT: (&str, &str) =
    ("404", "There is no such checkpoint, or it has ended; the text says when and why");
const UNKNOWN_TEMPLATE: (&str, &str) =
    ("404", "There is no such template; the text lists those that there are");
const UNKNOWN_SPACE: (&str, &str) =
    ("404", "There is no such Space, or it has been resumed or deleted; the text says which");
const UNKNOWN_KEY: (&str, &str) = ("404", "There is no such key, or it has been revoked");
const TOO_MANY: (&str, &str) =
    ("429", "The key has as many sandboxes and checkpoints as its tier allows; the text says how many");
const BAD_BODY: (&str, &str) = ("400", "The body cannot be understood, or asks for something out of range");
const FULL: (&str, &str) = (
    "503",
    "The host is starting, full or shutting down, or busy: then `Retry-After` says when to come back",
);
const CROWDED: (&str, &str) =
    ("503", "The host reads too many long bodies; `Retry-After` says when to come back");
const LONG_BODY: (&str, &str) = ("413", "The body is too long");
const UNKNOWN_PTY: (&str, &str) = ("404", "There is no such sandbox or terminal; the text says which");
const CROWDED_PTY: (&str, &str) = ("429", "Too many clients are at terminals of the sandbox, or of the host");
const UNREAD_PTY: (&str, &str) =
    ("409", "The program has ended; or it reads none of its input, which is then in part typed");
const FAILED: (&str, &str) = ("500", "The machine could not do it; the text says why");

const NO_FILE: (&str, &str) = (
    "404",
    "There is no such file: `code` is `ENOENT`; or, without a `code`, no such sandbox, or it has ended",
);
const BAD_QUERY: (&str, &str) = ("400", "The query cannot be understood, or the path is too long");
const DENIED: (&str, &str) = (
    "403",
    "The file system does not allow it; or the request comes from a web page, where the host has no keys",
);
const WRONG_KIND: (&str, &str) =
    ("409", "What is there is of another kind, in use, or not empty; `code` is Linux's name of the error");
const NO_SPACE: (&str, &str) = ("507", "The sandbox's disk is full; an upload has left nothing");
const BUSY_FILES: (&str, &str) = ("429", "32 file operations are under way in this sandbox");
const NO_AGENT: (&str, &str) = ("503", "The agent in the sandbox has died and is started again");
const SILENT: (&str, &str) = ("504", "The guest has not answered in time");

const PATH: QueryParameter =
    path_parameter("path", "Absolute, or relative to /root. Any percent-encoded bytes but NUL");
const SINCE: QueryParameter = QueryParameter {
    name: "since",
    meaning: "Only events with a `seq` above this; otherwise all that are kept",
    required: false,
    kind: QueryKind::Number,
};
const LIMIT: QueryParameter = QueryParameter {
    name: "limit",
    meaning: "At most so many events, up to 1,000",
    required: false,
    kind: QueryKind::Number,
};
const DAYS: QueryParameter = QueryParameter {
    name: "days",
    meaning: "The last so many days, up to 366; otherwise 31",
    required: false,
    kind: QueryKind::Number,
};
const FOLLOW: QueryParameter = QueryParameter {
    name: "follow",
    meaning: "Go on with what happens next, as NDJSON with blank lines as heartbeats; otherwise false",
    required: false,
    kind: QueryKind::Flag,
};
const MODE: QueryParameter = QueryParameter {
    name: "mode",
    meaning: "Permissions in octal, such as 0644; a file that is replaced keeps its own otherwise",
    required: false,
    kind: QueryKind::Text,
};
const RECURSIVE: QueryParameter = QueryParameter {
    name: "recursive",
    meaning: "Also what is below it; otherwise false",
    required: false,
    kind: QueryKind::Flag,
};
const DEPTH: QueryParameter = QueryParameter {
    name: "depth",
    meaning: "How many levels of folders to list; otherwise 1",
    required: false,
    kind: QueryKind::Number,
};

const fn path_parameter(name: &'static str, meaning: &'static str) -> QueryParameter {
    QueryParameter { name, meaning, required: true, kind: QueryKind::Text }
}

/// Every endpoint of the contract.
pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: Method::Get,
        path: "/v1/healthz",
        id: "healthz",
        summary: "`ok` as soon as sandboxes can be created",
        query: &[],
        request: Request::None,
        success: Success::Text,
        errors: &[FULL],
        open: true,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes",
        id: "create_sandbox",
        summary: "Creates a sandbox; it is ready when this answers",
        query: &[],
        request: Request::Json("CreateSandbox"),
        success: Success::Json("SandboxCreated"),
        errors: &[TOO_MANY, BAD_BODY, UNKNOWN_TEMPLATE, LONG_BODY, FAILED, FULL],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes",
        id: "list_sandboxes",
        summary: "Lists sandboxes, oldest first",
        query: &[],
        request: Request::None,
        success: Success::Json("SandboxList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}",
        id: "inspect_sandbox",
        summary: "Looks at one sandbox",
        query: &[],
        request: Request::None,
        success: Success::Json("SandboxView"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Patch,
        path: "/v1/sandboxes/{id}",
        id: "extend_sandbox",
        summary: "Gives a sandbox more time, or less",
        query: &[],
        request: Request::Json("ExtendSandbox"),
        success: Success::Json("SandboxView"),
        errors: &[BAD_BODY, UNKNOWN, LONG_BODY],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/sandboxes/{id}",
        id: "delete_sandbox",
        summary: "Ends a sandbox and its checkpoints; the same answer when there is none",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/network",
        id: "inspect_network",
        summary: "Tells what a sandbox may reach, and what has gone through its network card",
        query: &[],
        request: Request::None,
        success: Success::Json("NetworkView"),
        errors: &[UNKNOWN, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Put,
        path: "/v1/sandboxes/{id}/egress",
        id: "set_egress",
        summary: "Changes what a sandbox may reach, from the answer on, also for connections that are open",
        query: &[],
        request: Request::Json("SetEgress"),
        success: Success::Json("NetworkView"),
        errors: &[BAD_BODY, UNKNOWN, ("409", "The host has no network for its sandboxes"), LONG_BODY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/exec",
        id: "exec",
        summary: "Runs code and streams its events; the last is always `exit`. The header `podflare-exec-id` names it",
        query: &[],
        request: Request::Json("ExecRequest"),
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
        query: &[],
        request: Request::None,
        success: Success::Json("ExecList"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/sandboxes/{id}/execs/{exec}",
        id: "cancel_exec",
        summary: "Cancels an execution; the same answer when there is none. Its own stream tells its end",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty",
        id: "create_pty",
        summary: "Starts a program in a terminal of its own and streams its output, from `pty_ready` to `pty_exit`",
        query: &[],
        request: Request::Json("CreatePty"),
        success: Success::Events("PtyEvent"),
        errors: &[BAD_BODY, UNKNOWN, LONG_BODY, CROWDED_PTY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/pty",
        id: "list_ptys",
        summary: "Lists a sandbox's terminals, oldest first",
        query: &[],
        request: Request::None,
        success: Success::JsonArray("PtyInfo"),
        errors: &[UNKNOWN, CROWDED_PTY, FAILED, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/pty/{pty}/attach",
        id: "attach_pty",
        summary: "Streams the output of a terminal that is kept, the last 1 MiB, and then what comes",
        query: &[],
        request: Request::None,
        success: Success::Events("PtyEvent"),
        errors: &[UNKNOWN_PTY, CROWDED_PTY, FAILED, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/read",
        id: "read_pty",
        summary: "Output of a terminal from a place on; waits for it if there is none yet",
        query: &[],
        request: Request::Json("PtyRead"),
        success: Success::Json("PtyChunk"),
        errors: &[BAD_BODY, UNKNOWN_PTY, LONG_BODY, CROWDED_PTY, FAILED, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/input",
        id: "input_pty",
        summary: "Types something at a terminal, which has taken it when this answers",
        query: &[],
        request: Request::Json("PtyInput"),
        success: Success::Empty,
        errors: &[BAD_BODY, UNKNOWN_PTY, UNREAD_PTY, LONG_BODY, CROWDED_PTY, FAILED, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/resize",
        id: "resize_pty",
        summary: "Changes a terminal's size",
        query: &[],
        request: Request::Json("PtyResize"),
        success: Success::Empty,
        errors: &[
            BAD_BODY,
            UNKNOWN_PTY,
            ("409", "The program has ended"),
            LONG_BODY,
            CROWDED_PTY,
            FAILED,
            NO_AGENT,
            SILENT,
        ],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/pty/{pty}/kill",
        id: "kill_pty",
        summary: "Kills a terminal's program and what it has in the foreground; the same answer when it has ended",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[UNKNOWN_PTY, CROWDED_PTY, FAILED, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/ping",
        id: "ping",
        summary: "Asks the guest's agent for an answer; `guest` in `Server-Timing` is its round trip",
        query: &[],
        request: Request::None,
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
        query: &[],
        request: Request::None,
        success: Success::Events("ExecEvent"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/files",
        id: "download_file",
        summary: "Reads a file, or with `Range` a part of it; HEAD tells its size only",
        query: &[PATH],
        request: Request::None,
        success: Success::Bytes,
        errors: &[
            BAD_QUERY,
            DENIED,
            NO_FILE,
            WRONG_KIND,
            ("416", "The file is shorter than that"),
            BUSY_FILES,
            NO_AGENT,
            SILENT,
        ],
        open: false,
    },
    Endpoint {
        method: Method::Put,
        path: "/v1/sandboxes/{id}/files",
        id: "upload_file",
        summary: "Writes a file, whole or not at all, making its folders; symbolic links are followed",
        query: &[PATH, MODE],
        request: Request::Bytes,
        success: Success::Json("FileEntry"),
        errors: &[BAD_QUERY, DENIED, NO_FILE, WRONG_KIND, BUSY_FILES, NO_AGENT, SILENT, NO_SPACE],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/sandboxes/{id}/files",
        id: "remove_file",
        summary: "Removes a file, a symbolic link itself, or a folder, which must be empty unless `recursive`",
        query: &[PATH, RECURSIVE],
        request: Request::None,
        success: Success::Empty,
        errors: &[BAD_QUERY, DENIED, NO_FILE, WRONG_KIND, BUSY_FILES, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/files/stat",
        id: "stat_file",
        summary: "Looks at a file or folder, or at a symbolic link itself",
        query: &[PATH],
        request: Request::None,
        success: Success::Json("FileEntry"),
        errors: &[BAD_QUERY, DENIED, NO_FILE, WRONG_KIND, BUSY_FILES, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/files/list",
        id: "list_files",
        summary: "Lists a folder, and those below it as deep as is asked for",
        query: &[PATH, DEPTH],
        request: Request::None,
        success: Success::Json("FileList"),
        errors: &[BAD_QUERY, DENIED, NO_FILE, WRONG_KIND, BUSY_FILES, NO_AGENT, SILENT],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/files/mkdir",
        id: "make_directory",
        summary: "Makes a folder and its parents; one that is there stays as it is",
        query: &[PATH, MODE],
        request: Request::None,
        success: Success::Json("FileEntry"),
        errors: &[BAD_QUERY, DENIED, NO_FILE, WRONG_KIND, BUSY_FILES, NO_AGENT, SILENT, NO_SPACE],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/files/move",
        id: "move_file",
        summary: "Renames a file or folder within its file system; a file of that name is replaced",
        query: &[
            path_parameter("from", "What is moved, a symbolic link itself"),
            path_parameter("to", "Its new path; folders on the way are made"),
        ],
        request: Request::None,
        success: Success::Json("FileEntry"),
        errors: &[BAD_QUERY, DENIED, NO_FILE, WRONG_KIND, BUSY_FILES, NO_AGENT, SILENT, NO_SPACE],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/sandboxes/{id}/files/watch",
        id: "watch_files",
        summary: "Streams what happens to a file or in a folder from the answer's head on, until that is gone",
        query: &[PATH, RECURSIVE],
        request: Request::None,
        success: Success::Events("FileEvent"),
        errors: &[BAD_QUERY, DENIED, NO_FILE, WRONG_KIND, BUSY_FILES, NO_AGENT, SILENT, NO_SPACE],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/fork",
        id: "fork",
        summary: "Copies a sandbox as it is now; every child is ready when this answers",
        query: &[],
        request: Request::Json("ForkRequest"),
        success: Success::Json("Forked"),
        errors: &[TOO_MANY, BAD_BODY, UNKNOWN, LONG_BODY, FAILED, FULL],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{parent}/merge_into/{winner}",
        id: "merge_into",
        summary: "Puts the winner's machine in the parent's place; the winner's own id is gone",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[("400", "Parent and winner are the same sandbox"), UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/checkpoints",
        id: "checkpoint",
        summary: "Keeps a sandbox's state as it is now; the sandbox runs on",
        query: &[],
        request: Request::Json("CheckpointRequest"),
        success: Success::Json("CheckpointView"),
        errors: &[
            TOO_MANY,
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
        query: &[],
        request: Request::None,
        success: Success::Json("CheckpointList"),
        errors: &[UNKNOWN],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/restore",
        id: "restore",
        summary: "Puts a copy of a checkpoint in its sandbox's place; both ids and the checkpoint stay",
        query: &[],
        request: Request::Json("RestoreRequest"),
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
        query: &[],
        request: Request::None,
        success: Success::Json("CheckpointList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/checkpoints/{checkpoint}",
        id: "inspect_checkpoint",
        summary: "Looks at one checkpoint",
        query: &[],
        request: Request::None,
        success: Success::Json("CheckpointView"),
        errors: &[UNKNOWN_CHECKPOINT],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/checkpoints/{checkpoint}",
        id: "delete_checkpoint",
        summary: "Ends a checkpoint; the same answer when there is none",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/checkpoints/{checkpoint}/fork",
        id: "fork_checkpoint",
        summary: "Makes sandboxes of a checkpoint; every child is ready when this answers",
        query: &[],
        request: Request::Json("ForkRequest"),
        success: Success::Json("Forked"),
        errors: &[TOO_MANY, BAD_BODY, UNKNOWN_CHECKPOINT, LONG_BODY, FAILED, FULL],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/sandboxes/{id}/freeze",
        id: "freeze_sandbox",
        summary: "Freezes a sandbox into a Space, and ends it when all of it is on the disk",
        query: &[],
        request: Request::None,
        success: Success::Json("SpaceView"),
        errors: &[
            UNKNOWN,
            ("409", "It is being frozen already"),
            ("429", "The key has as many Spaces as its tier allows; the text says how many"),
            FAILED,
            FULL,
            ("507", "The host's disk is full; the sandbox goes on"),
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/spaces",
        id: "list_spaces",
        summary: "Lists the Spaces that can be resumed, oldest first",
        query: &[],
        request: Request::None,
        success: Success::Json("SpaceList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/spaces/{space}",
        id: "inspect_space",
        summary: "Looks at one Space",
        query: &[],
        request: Request::None,
        success: Success::Json("SpaceView"),
        errors: &[UNKNOWN_SPACE],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/spaces/{space}",
        id: "delete_space",
        summary: "Removes a Space; the same answer when there is none",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/spaces/{space}/resume",
        id: "resume_space",
        summary: "Makes a sandbox that goes on where the Space was frozen",
        query: &[],
        request: Request::Json("ResumeSpace"),
        success: Success::Json("SandboxCreated"),
        errors: &[
            TOO_MANY,
            BAD_BODY,
            UNKNOWN_SPACE,
            LONG_BODY,
            ("409", "It is being resumed; or it cannot be here, and the text says why"),
            FAILED,
            FULL,
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/spaces/{space}/export",
        id: "export_space",
        summary: "Reads a Space as one file, with all but its root disk image",
        query: &[],
        request: Request::None,
        success: Success::Archive,
        errors: &[UNKNOWN_SPACE, ("409", "It is sealed with a key that this host has not")],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/spaces/import",
        id: "import_space",
        summary: "Takes a Space that was exported, under another id",
        query: &[],
        request: Request::Bytes,
        success: Success::Json("SpaceView"),
        errors: &[
            ("400", "It is no exported Space"),
            ("409", "It cannot be resumed here, and the text says why"),
            ("429", "The key has as many Spaces as its tier allows; the text says how many"),
            FAILED,
            ("507", "The host's disk is full"),
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/templates",
        id: "list_templates",
        summary: "Lists the templates that sandboxes can be made of",
        query: &[],
        request: Request::None,
        success: Success::Json("TemplateList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/templates/{name}",
        id: "inspect_template",
        summary: "Looks at one template",
        query: &[],
        request: Request::None,
        success: Success::Json("TemplateView"),
        errors: &[UNKNOWN_TEMPLATE],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/templates/{name}",
        id: "take_template",
        summary: "Takes what is in the template's folder now: boots it, then puts it in the place of the former one; \
                  sandboxes of that go on",
        query: &[],
        request: Request::None,
        success: Success::Lines("TemplateProgress"),
        errors: &[
            ("404", "The host has no such folder, or no folder for templates at all"),
            ("409", "`default` comes with the host's image; or the manifest in the folder cannot be used"),
        ],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/templates/{name}",
        id: "remove_template",
        summary: "Ends what the host has made of a template; its sandboxes go on, and its folder stays",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[UNKNOWN_TEMPLATE, ("409", "It is `default`")],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/capacity",
        id: "capacity",
        summary: "What the host has ready and what it has given out",
        query: &[],
        request: Request::None,
        success: Success::Json("Capacity"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/metrics",
        id: "metrics",
        summary: "What Prometheus is told, in the OpenMetrics text format; only for the operator",
        query: &[],
        request: Request::None,
        success: Success::Text,
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/events",
        id: "events",
        summary: "What happens to sandboxes: a list, or with `follow` a stream of one event a line that goes on",
        query: &[SINCE, LIMIT, FOLLOW],
        request: Request::None,
        success: Success::Json("EventList"),
        errors: &[
            ("400", "The query cannot be understood"),
            ("429", "Too many clients follow the events"),
            FAILED,
        ],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/usage",
        id: "usage",
        summary: "What the key has used, by day; for the operator, what all have",
        query: &[DAYS],
        request: Request::None,
        success: Success::Json("UsageList"),
        errors: &[("400", "The query cannot be understood"), FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/webhooks",
        id: "create_webhook",
        summary: "Has an address told of events from now on, signed with a secret that is shown this once",
        query: &[],
        request: Request::Json("CreateWebhook"),
        success: Success::Json("WebhookCreated"),
        errors: &[BAD_BODY, LONG_BODY, ("409", "There are as many webhooks as there may be"), FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/webhooks",
        id: "list_webhooks",
        summary: "Lists webhooks, and how far each has been told",
        query: &[],
        request: Request::None,
        success: Success::Json("WebhookList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/webhooks/{webhook}",
        id: "delete_webhook",
        summary: "Has an address told no more",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[("404", "There is no such webhook"), FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/keys",
        id: "create_key",
        summary: "Makes a key, which is shown this once; only for the operator",
        query: &[],
        request: Request::Json("CreateKey"),
        success: Success::Json("KeyCreated"),
        errors: &[BAD_BODY, LONG_BODY, ("409", "The host has as many keys as it can"), FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/v1/keys",
        id: "list_keys",
        summary: "Lists the keys that were made; only for the operator",
        query: &[],
        request: Request::None,
        success: Success::Json("KeyList"),
        errors: &[],
        open: false,
    },
    Endpoint {
        method: Method::Delete,
        path: "/v1/keys/{key}",
        id: "revoke_key",
        summary: "Lets nobody in with a key any more; what runs with it runs on; only for the operator",
        query: &[],
        request: Request::None,
        success: Success::Empty,
        errors: &[UNKNOWN_KEY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Post,
        path: "/v1/keys/{key}/rotate",
        id: "rotate_key",
        summary: "Gives a key another secret, shown this once; only for the operator",
        query: &[],
        request: Request::None,
        success: Success::Json("KeyCreated"),
        errors: &[UNKNOWN_KEY, FAILED],
        open: false,
    },
    Endpoint {
        method: Method::Get,
        path: "/openapi.json",
        id: "openapi",
        summary: "This document",
        query: &[],
        request: Request::None,
        success: Success::Document,
        errors: &[],
        open: true,
    },
];

#[derive(OpenApi)]
#[openapi(components(schemas(
    Capacity,
    CheckpointId,
    AllowList,
    CheckpointList,
    CheckpointRequest,
    CheckpointView,
    ChildFailure,
    CreateKey,
    CreatePty,
    CreateSandbox,
    CreateWebhook,
    Egress,
    ErrorBody,
    EventList,
    ExecEvent,
    ExecEventKind,
    ExecId,
    ExecList,
    ExecRequest,
    ExecState,
    ExecView,
    ExitReason,
    ExtendSandbox,
    FileEntry,
    FileEvent,
    FileEventKind,
    FileKind,
    FileList,
    Forked,
    ForkRequest,
    Happening,
    KeyCreated,
    KeyId,
    KeyList,
    KeyView,
    Language,
    LifecycleEvent,
    NetworkView,
    PtyChunk,
    PtyEvent,
    PtyId,
    PtyInfo,
    PtyInput,
    PtyRead,
    PtyResize,
    RestoreRequest,
    ResumeSpace,
    SandboxCreated,
    SandboxId,
    SandboxList,
    SandboxState,
    SandboxView,
    SetEgress,
    SpaceId,
    SpaceList,
    SpaceView,
    TakeState,
    TemplateCapacity,
    TemplateList,
    TemplateProgress,
    TemplateSize,
    TemplateState,
    TemplateView,
    UsageDay,
    UsageList,
    WebhookCreated,
    WebhookId,
    WebhookList,
    WebhookView,
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
        .request_body(request_body(endpoint.request));
    for name in path_parameters(endpoint.path) {
        let parameter =
            ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        let parameter = match name {
            "name" => parameter.schema(Some(Object::with_type(Type::String))),
            "checkpoint" => parameter.schema(Some(Ref::from_schema_name("CheckpointId"))),
            "exec" => parameter.schema(Some(Ref::from_schema_name("ExecId"))),
            "key" => parameter.schema(Some(Ref::from_schema_name("KeyId"))),
            "pty" => parameter.schema(Some(Ref::from_schema_name("PtyId"))),
            "space" => parameter.schema(Some(Ref::from_schema_name("SpaceId"))),
            "webhook" => parameter.schema(Some(Ref::from_schema_name("WebhookId"))),
            _ => parameter.schema(Some(Ref::from_schema_name("SandboxId"))),
        };
        operation = operation.parameter(parameter);
    }
    for parameter in endpoint.query {
        operation = operation.parameter(query_parameter(parameter));
    }
    let (status, response) = success(endpoint.success);
    operation = operation.response(status, response);
    operation = operation
        .response("403", error("The request comes from a web page; only where the host has no keys"));
    for (status, meaning) in endpoint.errors {
        operation = operation.response(*status, error(meaning));
    }
    if endpoint.request != Request::None {
        operation = operation.response("408", error("Nothing more of the body came for too long"));
    }
    if matches!(endpoint.request, Request::Json(_)) {
        operation = operation.response("415", error("The body is not JSON, or does not say so"));
    }
    if matches!(endpoint.success, Success::Bytes) {
        operation = operation.response("206", bytes("The part that was asked for"));
    }
    if !endpoint.open {
        operation = operation
            .response("401", error("No key, or a wrong one; only where the host has keys"))
            .security(SecurityRequirement::new(BEARER, Vec::<String>::new()));
    }
    let method = match endpoint.method {
        Method::Get => HttpMethod::Get,
        Method::Put => HttpMethod::Put,
        Method::Patch => HttpMethod::Patch,
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
        Success::Lines(schema) => answer(
            "How far it is, a line for each step, the last `ready` or `failed`; blank lines are heartbeats",
            "application/x-ndjson",
            Content::new(Some(Ref::from_schema_name(schema))),
        ),
        Success::Bytes => ("200", bytes("The file; without a length if it has none, as those of /proc")),
        Success::Archive => answer("The file, a tar archive", "application/x-tar", Content::default()),
        Success::Text => answer("`ok`", "text/plain", Content::default()),
        Success::Document => answer("An OpenAPI document", "application/json", Content::default()),
        Success::Empty => ("204", ResponseBuilder::new().description("Done").build()),
    }
}

fn request_body(request: Request) -> Option<RequestBody> {
    let body = RequestBodyBuilder::new().required(Some(Required::True));
    match request {
        Request::None => None,
        Request::Json(schema) => {
            let content = Content::new(Some(Ref::from_schema_name(schema)));
            Some(body.content("application/json", content).build())
        }
        Request::Bytes => Some(body.content("application/octet-stream", Content::default()).build()),
    }
}

fn query_parameter(parameter: &QueryParameter) -> Parameter {
    let required = if parameter.required { Required::True } else { Required::False };
    let kind = match parameter.kind {
        QueryKind::Text => Type::String,
        QueryKind::Flag => Type::Boolean,
        QueryKind::Number => Type::Integer,
    };
    ParameterBuilder::new()
        .name(parameter.name)
        .parameter_in(ParameterIn::Query)
        .description(Some(parameter.meaning))
        .required(required)
        .schema(Some(Object::with_type(kind)))
        .build()
}

fn bytes(description: &str) -> Response {
    let content = Content::default();
    ResponseBuilder::new().description(description).content("application/octet-stream", content).build()
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
