//! The routes of the control socket: everything that only the operator may see and change.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;

use super::body::Fields;
use super::query::Query;
use super::refusal::Refusal;
use super::{Api, reload};
use crate::control::commands::Command;
use crate::http::response;
use crate::turn::Operator;

/// What a path below `/v1/` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource<'p> {
    Status,
    Sessions,
    Session(&'p str),
    Revocations,
    Drain,
    Resume,
    Reload,
    LogLevel,
    Certificates,
    Offload,
    TestLinks,
    TestResults,
    Fleet,
    FleetOrders,
}

impl<'p> Resource<'p> {
    pub(super) fn at(path: &'p str) -> Option<Self> {
        Some(match path.strip_prefix("/v1/")? {
            "status" => Self::Status,
            "sessions" => Self::Sessions,
            "revocations" => Self::Revocations,
            "drain" => Self::Drain,
            "resume" => Self::Resume,
            "reload" => Self::Reload,
            "log-level" => Self::LogLevel,
            "certificates" => Self::Certificates,
            "offload" => Self::Offload,
            "test-links" => Self::TestLinks,
            "test-results" => Self::TestResults,
            "fleet" => Self::Fleet,
            "fleet/orders" => Self::FleetOrders,
            path => Self::Session(path.strip_prefix("sessions/")?),
        })
    }

    /// Returns the methods that it supports.
    pub(super) fn methods(self) -> &'static str {
        match self {
            Self::Status | Self::Certificates | Self::Offload | Self::TestResults | Self::Fleet => "GET",
            Self::LogLevel => "PUT",
            Self::Revocations | Self::Drain | Self::Resume | Self::Reload | Self::TestLinks | Self::FleetOrders => {
                "POST"
            }
            Self::Sessions | Self::Session(_) => "GET, DELETE",
        }
    }

    /// Refuses a query or a body that the resource does not read. It may say, for example, that the request is a trial.
    fn refuse_unread(self, request: &Request<Bytes>) -> Result<(), Refusal> {
        let reads_query = match self {
            Self::Status | Self::Sessions => true,
            Self::Session(_) => request.method() == Method::GET,
            _ => false,
        };
        if !reads_query {
            Query::of(request).finish()?;
        }
        let reads_body =
            matches!(self, Self::Revocations | Self::LogLevel | Self::Reload | Self::TestLinks | Self::FleetOrders);
        if reads_body || request.body().is_empty() { Ok(()) } else { Fields::of(request)?.finish() }
    }
}

impl Api {
    /// Responds to a request on the control socket.
    pub(super) async fn steer(
        &self,
        resource: Resource<'_>,
        operator: Operator,
        request: &Request<Bytes>,
    ) -> Response<Full<Bytes>> {
        match self.respond(resource, operator, request).await {
            Ok(value) => response::json(StatusCode::OK, &value),
            Err(Refusal { status, message }) => response::error(status, &message),
        }
    }

    async fn respond(
        &self,
        resource: Resource<'_>,
        operator: Operator,
        request: &Request<Bytes>,
    ) -> Result<Value, Refusal> {
        resource.refuse_unread(request)?;
        match resource {
            Resource::Status => self.status(request).await,
            Resource::Sessions if request.method() == Method::GET => self.sessions(request).await,
            Resource::Sessions => self.end_sessions(request, operator).await,
            Resource::Session(id) if request.method() == Method::GET => self.session(id, request).await,
            Resource::Session(id) => self.end_session(id, operator).await,
            Resource::Revocations => self.revoke(request, operator).await,
            Resource::LogLevel => self.set_log_level(request, operator).await,
            Resource::Certificates => Ok(self.certificates()),
            Resource::Offload => Ok(self.offload().await),
            Resource::TestLinks => self.make_test_link(request, operator),
            Resource::TestResults => Ok(self.test_results()),
            Resource::Fleet => self.fleet(),
            Resource::FleetOrders => self.order_fleet(request).await,
            Resource::Drain => self.command(Command::Drain, operator).await,
            Resource::Resume => self.command(Command::Resume, operator).await,
            Resource::Reload => {
                let dry_run = reload::is_dry_run(request)?;
                self.command(Command::Reload { dry_run }, operator).await
            }
        }
    }

    /// Lets control carry out a command.
    pub(super) async fn command(&self, command: Command, operator: Operator) -> Result<Value, Refusal> {
        match self.commands.send(command, operator).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(why)) => Err(Refusal::conflict(why)),
            Err(stopping) => Err(Refusal::unavailable(stopping.to_string())),
        }
    }
}
